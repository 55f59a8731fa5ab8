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
from dynaspec_cli.target.load import load
from dynaspec_cli.training.loss import LossConfig, gram_matrix, unrolled_loss
from dynaspec_cli.training.run import RunConfig, train
from dynaspec_cli.training.shards import ShardConfig
from dynaspec_cli.training.trainer import TrainConfig


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


def test_bad_input(tiny_model_dir, corpus, tmp_path):
    with pytest.raises(DynaSpecError, match=r"holds no checkpoint\.safetensors"):
        next(train(make_run(tiny_model_dir, corpus, tmp_path / "none", 5, resume=True)))
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "run", 2)):
        pass
    with pytest.raises(UsageError, match="holds a run already"):
        make_run(tiny_model_dir, corpus, tmp_path / "run", 2)
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
