"""The trainer: what it minimises, that a killed run ends where an unbroken one does, and that the
result loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.main import cli
from dynaspec_cli.target.load import load, load_transformers
from dynaspec_cli.training.evaluate import module_unroll
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.training.loss import (
    LossConfig,
    gram_matrix,
    quadratic_form,
    soft_cross_entropy,
    softmax_rows,
    unrolled_loss,
)
from dynaspec_cli.training.model import rms_norm
from dynaspec_cli.training.prompts import prompt_batches
from dynaspec_cli.training.run import RunConfig, train
from dynaspec_cli.training.shards import ShardConfig
from dynaspec_cli.training.trainer import TrainConfig, Trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "Paris", "is"]
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(200):
        picks = torch.randint(len(words), (60,), generator=generator).tolist()
        lines.append(json.dumps({"task": "ab"[i % 2], "text": " ".join(words[j] for j in picks)}))
    path.write_text("\n".join(lines))
    return path


def make_run(model: Path, corpus: Path, out: Path, steps: int, **changes) -> RunConfig:
    schedule = TrainConfig(
        steps=steps,
        batch_tokens=64,
        unroll=2,
        warmup=2,
        save_every=1000,
        decay_share=1e-9,
        window=3,
    )
    settings = {
        "model": str(model),
        "corpus": (str(corpus),),
        "out": out,
        "dtype": "float32",
        "device": "cpu",
        "score_every": 1000,
        "train": schedule,
        "shards": ShardConfig(tokens=192, length=32, columns=300),
    }
    return RunConfig(**(settings | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v
        for k, v in load_file(folder / "checkpoint.safetensors").items()
        if k.startswith("weight.")
    }


def test_a_killed_run_ends_where_an_unbroken_one_does(tiny_model_dir, corpus, tmp_path):
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "whole", 14)):
        pass
    first = train(make_run(tiny_model_dir, corpus, tmp_path / "parts", 14))
    for state in first:
        if state.step == 9:
            first.close()
            break
    for shard in (tmp_path / "parts" / "shards").glob("*"):  # a cleaned cache must not matter
        shard.unlink()
    steps = [
        s.step for s in train(make_run(tiny_model_dir, corpus, tmp_path / "parts", 14, resume=True))
    ]
    assert steps == [10, 11, 12, 13, 14]
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_an_interrupted_update_is_made_again(tiny_model_dir, corpus, tmp_path, monkeypatch):
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "whole", 6)):
        pass
    whole_update = Trainer._update

    def stop_at_4(self, batch, rate, step):
        if step == 4:
            raise KeyboardInterrupt
        return whole_update(self, batch, rate, step)

    monkeypatch.setattr(Trainer, "_update", stop_at_4)
    with pytest.raises(KeyboardInterrupt):
        for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "parts", 6)):
            pass
    monkeypatch.setattr(Trainer, "_update", whole_update)
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "parts", 6, resume=True)):
        pass
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_a_run_begun_with_another_drafter_is_resumed(tiny_model_dir, corpus, tmp_path):
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "first", 3)):
        pass
    start = tmp_path / "first"
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"feature_scale": 3.0}))
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "second", 2, start=start)):
        pass
    resumed = list(train(make_run(tiny_model_dir, corpus, tmp_path / "second", 4, resume=True)))
    assert [state.step for state in resumed] == [3, 4]
    final = json.loads((tmp_path / "second" / "config.json").read_text())
    assert final["feature_scale"] == 3.0
    assert final["trained_tokens"] == config["trained_tokens"] + resumed[-1].tokens


def test_text_of_another_corpus_is_not_taken_for_this_ones(tiny_model_dir, corpus, tmp_path):
    run = train(make_run(tiny_model_dir, corpus, tmp_path / "run", 3))
    next(run)
    run.close()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(reversed(corpus.read_text().splitlines()[:150])))
    again = make_run(tiny_model_dir, other, tmp_path / "run", 3, resume=True)
    with pytest.raises(DynaSpecError, match="text of another model, corpus"):
        next(train(again))


def test_training_lowers_the_loss_and_the_drafter_loads(tiny_model_dir, corpus, tmp_path):
    states = list(train(make_run(tiny_model_dir, corpus, tmp_path / "d", 60, score_every=60)))
    first = sum(s.losses[0] for s in states[:5])
    last = sum(s.losses[0] for s in states[-5:])
    assert last < 0.9 * first
    score = states[-1].score
    assert score is not None
    assert 1.0 <= score.chain_length <= 5.0
    assert set(score.by_group) <= {"a", "b"}
    target, _ = load(str(tiny_model_dir), dtype="float32", device="cpu")
    drafter = EagleDrafter.load(tmp_path / "d", target)
    assert drafter.config.trained_tokens == states[-1].tokens
    assert drafter.config.head_hash == target.head_hash()


def test_gram_matrix_is_the_variance_of_logit_errors():
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(40, 6, generator=generator)
    counts = torch.randint(1, 50, (40,), generator=generator)
    error = torch.randn(6, generator=generator)
    pi = (counts + 1).float() ** 0.75
    pi /= pi.sum()
    logits = head @ error
    variance = (pi * (logits - (pi * logits).sum()) ** 2).sum()
    torch.testing.assert_close(
        error @ gram_matrix(head, counts) @ error, variance, rtol=1e-4, atol=1e-5
    )


def test_loss_is_least_at_the_target_and_ignores_void_rows():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(1, 5, 6, generator=generator)
    columns = torch.randn(9, 6, generator=generator)
    weight = torch.ones(1, 5)
    config = LossConfig(gram=0.0)
    best, values = unrolled_loss([truth, truth], truth, columns, None, weight, config)
    entropy = torch.distributions.Categorical(logits=truth @ columns.t()).entropy()[0]
    assert values == pytest.approx([float(entropy.mean()), float(entropy[1:].mean())], rel=1e-5)
    void = truth.clone()
    void[:, 0] = 100.0
    same, _ = unrolled_loss([truth, void], truth, columns, None, weight, config)
    assert float(same) == pytest.approx(float(best))
    worse, _ = unrolled_loss([truth + 0.5, truth], truth, columns, None, weight, config)
    assert float(worse) > float(best)


def test_cross_entropy_has_the_gradient_of_the_plain_formula():
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(7, 6, generator=generator, requires_grad=True)
    columns = torch.randn(9, 6, generator=generator)
    p = torch.softmax(torch.randn(7, 9, generator=generator), -1)
    weight = torch.rand(7, generator=generator)
    plain = -(p * torch.log_softmax(h @ columns.t(), -1)).sum(-1) @ weight
    (wanted,) = torch.autograd.grad(3 * plain, h)
    fused = soft_cross_entropy(h, columns, p, weight)
    (got,) = torch.autograd.grad(3 * fused, h)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("rows", [1, 31, 32, 77])
def test_softmax_in_blocks_of_rows(rows):
    generator = torch.Generator().manual_seed(rows)
    h = torch.randn(rows, 6, generator=generator)
    columns = torch.randn(50, 6, generator=generator)
    torch.testing.assert_close(softmax_rows(h, columns), torch.softmax(h @ columns.t(), -1))


def test_quadratic_form_has_the_gradient_of_the_plain_formula():
    generator = torch.Generator().manual_seed(4)
    error = torch.randn(7, 6, generator=generator, requires_grad=True)
    root = torch.randn(6, 6, generator=generator)
    gram, weight = root.t() @ root, torch.rand(7, generator=generator)
    plain = ((error @ gram) * error).sum(-1) @ weight / 2
    fused = quadratic_form(error, gram, weight)
    torch.testing.assert_close(fused, plain)
    for got, wanted in zip(
        torch.autograd.grad(3 * fused, error), torch.autograd.grad(3 * plain, error), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 3, 4)])
def test_rms_norm_has_the_gradient_of_the_plain_formula(shape):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    weight = torch.randn(shape[-1], generator=generator, requires_grad=True)
    toward = torch.randn(shape, generator=generator)
    plain = torch.nn.functional.rms_norm(x, (shape[-1],), weight, 1e-6)
    ours = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(ours, plain)
    for got, wanted in zip(
        torch.autograd.grad((ours * toward).sum(), (x, weight)),
        torch.autograd.grad((plain * toward).sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    (alone,) = torch.autograd.grad((rms_norm(x.detach(), weight, 1e-6) * toward).sum(), weight)
    torch.testing.assert_close(alone, got)


@pytest.mark.parametrize("layers", [1, 2])
def test_context_rows_change_nothing_but_the_work(tiny_model_dir, layers):
    """Rows from ``begin`` on are the same whether or not the rows before them are computed."""
    target = load_transformers(tiny_model_dir, "tiny", torch.float32, torch.device("cpu"))
    module = from_target(drafter_config(target, layers, 1.0), target)
    torch.manual_seed(4)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(5, 200, (2, 12))
    features = torch.randn(2, 12, target.hidden_size)
    begin, depth = 4, 3
    whole = module_unroll(module, features, tokens, target._embedding, depth)
    part = module_unroll(module, features, tokens, target._embedding, depth, begin)
    for step in range(depth):
        torch.testing.assert_close(part[step][:, step:], whole[step][:, begin + step :])


def test_prompts_are_batched_by_length_and_continued(tiny_model_dir, corpus, tmp_path):
    prompts = [torch.arange(n) + i for i, n in enumerate([5] * 30 + [7] * 13 + [130] * 20 + [9])]
    batches = prompt_batches(prompts, list(range(len(prompts))), 4096, 512, seed=1)
    again = prompt_batches(prompts, list(range(len(prompts))), 4096, 512, seed=1)
    assert [b.groups.tolist() for b in batches] == [b.groups.tolist() for b in again]
    seen = sorted(i for b in batches for i in b.groups.tolist())
    assert seen == sorted(set(seen))
    assert {b.tokens.shape[1] for b in batches} <= {5, 7, 9, 128}
    for batch in batches:
        for row, i in zip(batch.tokens, batch.groups.tolist(), strict=True):
            assert torch.equal(row, prompts[i][: row.numel()])
    run = make_run(tiny_model_dir, corpus, tmp_path / "p", 3, prompts=(str(corpus),))
    assert [state.step for state in train(run)] == [1, 2, 3]


def test_bad_input(tiny_model_dir, corpus, tmp_path):
    with pytest.raises(DynaSpecError, match=r"holds no checkpoint\.safetensors"):
        next(train(make_run(tiny_model_dir, corpus, tmp_path / "none", 5, resume=True)))
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "run", 2)):
        pass
    with pytest.raises(UsageError, match="holds a run already"):
        make_run(tiny_model_dir, corpus, tmp_path / "run", 2)
    with pytest.raises(UsageError, match=r"holds a config\.json that is no run's"):
        make_run(tiny_model_dir, corpus, tiny_model_dir, 2)
    with pytest.raises(UsageError, match="is no folder"):
        make_run(tiny_model_dir, corpus, corpus, 2)
    with pytest.raises(UsageError, match=r"--layers: expected at most the \d+ of"):
        next(train(make_run(tiny_model_dir, corpus, tmp_path / "deep", 2, layers=99)))
    for changes, message in (
        ({"steps": 0}, "--steps: expected at least 1, got 0"),
        ({"batch_tokens": 8}, "--batch-tokens: expected at least 16, got 8"),
        ({"passes": 0.0}, "--passes: expected a number above 0"),
        ({"learning_rate": -1.0}, "--learning-rate: expected a number above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            TrainConfig(**changes)
    other = make_run(
        tiny_model_dir,
        corpus,
        tmp_path / "run",
        4,
        resume=True,
        train=TrainConfig(steps=4, unroll=1),
    )
    with pytest.raises(DynaSpecError, match="was made with settings"):
        next(train(other))
    with pytest.raises(UsageError, match="--minutes: expected more than 0"):
        make_run(tiny_model_dir, corpus, tmp_path / "x", 2, minutes=0.0)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DynaSpecError, match="corpus file is empty"):
        next(train(make_run(tiny_model_dir, empty, tmp_path / "y", 2)))


def test_command(tiny_model_dir, corpus, tmp_path):
    arguments = [
        "train-drafter",
        "--model",
        str(tiny_model_dir),
        "--corpus",
        str(corpus),
        "--out",
        str(tmp_path / "d"),
        "--steps",
        "3",
        "--dtype",
        "float32",
        "--batch-tokens",
        "64",
        "--save-every",
        "3",
        "--json",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["steps"] == 3
    assert data["tokens"] > 0
    assert (tmp_path / "d" / "model.safetensors").is_file()
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 2
    assert "add --resume" in again.stderr
