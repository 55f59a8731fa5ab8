"""The trainer: what it minimises, that a killed run ends where an unbroken one does, and that the
result loads."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from training_runs import make_run

from dynaspec_cli.drafters.eagle import load_eagle
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.main import cli
from dynaspec_cli.target.load import load, load_transformers
from dynaspec_cli.training.evaluate import HeldOut, held_out_score
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.training.prompts import prompt_batches
from dynaspec_cli.training.run import train
from dynaspec_cli.training.shards import Shard, ended
from dynaspec_cli.training.teacher import Teacher
from dynaspec_cli.training.texts import HeldOutTexts, pieces
from dynaspec_cli.training.trainer import TrainConfig


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
    drafter = load_eagle(DrafterFiles(tmp_path / "d", "test"), target)
    assert drafter.config.trained_tokens == states[-1].tokens
    assert drafter.config.head_hash == target.head_hash()


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
    with pytest.raises(UsageError, match="--learning-rate: expected a number above 0, got 0"):
        make_run(tiny_model_dir, corpus, tmp_path / "x", 2, train=TrainConfig(learning_rate=0.0))
    with pytest.raises(UsageError, match="--dtype: expected bfloat16 or float32 to train in"):
        next(train(make_run(tiny_model_dir, corpus, tmp_path / "half", 2, dtype="float16")))
    with pytest.raises(UsageError, match="--layers: the drafter to go on from has 1, got 2"):
        next(train(make_run(tiny_model_dir, corpus, tmp_path / "run", 4, resume=True, layers=2)))
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
    over = CliRunner().invoke(cli, [*arguments, "--resume"])
    assert over.exit_code == 0, over.stderr
    assert "nothing to do: the run has reached --steps" in over.stderr
    same = ("steps", "tokens", "held_out_top1", "held_out_chain_length")
    assert {k: json.loads(over.stdout)[k] for k in same} == {k: data[k] for k in same}
    assert json.loads(over.stdout)["losses"] == []


def test_a_timed_run_ends_with_a_score(tiny_model_dir, corpus, tmp_path):
    states = list(train(make_run(tiny_model_dir, corpus, tmp_path / "d", 10**9, minutes=0.02)))
    assert states[-1].step % 1000
    assert [state.score is None for state in states] == [True] * (len(states) - 1) + [False]


def test_held_out_texts_are_of_every_group():
    held = HeldOutTexts(5)
    for group, count in (("a", 9), ("b", 2), ("c", 1)):
        for i in range(count):
            held.add(group, torch.tensor([i, 7]))
    found = [(group, int(ids[0])) for group, ids in held.take()]
    assert found == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1)]


def test_long_texts_are_cut_into_pieces_behind_their_bos():
    ids = torch.tensor([2, *range(10, 21)])
    cut = [part.tolist() for part in pieces(ids, 5, 2)]
    assert cut == [[2, 10, 11, 12, 13], [2, 14, 15, 16, 17], [2, 18, 19, 20]]
    cut = [part.tolist() for part in pieces(ids, 5, None)]
    assert cut == [[2, 10, 11, 12, 13], [14, 15, 16, 17, 18], [19, 20]]
    assert [p.tolist() for p in pieces(torch.tensor([2, 5, 6, 7, 8, 9]), 5, None)] == [
        [2, 5, 6, 7, 8]
    ]


def test_what_follows_the_end_of_a_text_is_not_scored(tiny_model_dir):
    tokens = torch.tensor([[3, 9, 4, 5, 9, 6, 7], [3, 4, 4, 5, 5, 6, 7]])
    assert ended(tokens, 2, (9,)).tolist() == [[False] * 4 + [True] * 3, [False] * 7]
    assert not ended(tokens, 2, ()).any()
    assert not ended(tokens, 7, (9,)).any()  # corpus text
    target = load_transformers(tiny_model_dir, "tiny", torch.float32, torch.device("cpu"))
    module = from_target(drafter_config(target, 1, 1.0), target)
    teacher = Teacher(target)
    tokens = torch.randint(5, 200, (1, 24), generator=torch.Generator().manual_seed(1))
    tokens[0, 20] = 3
    features = teacher.read(tokens)
    columns = torch.arange(target.vocab_size)

    def score(length, ends):
        shard = Shard(tokens[:, :length], features[:, :length], 6, torch.zeros(1).long())
        held = HeldOut.of(shard, teacher.head, teacher.backbone.norm, ends)
        return held_out_score(
            module,
            [held],
            teacher.head,
            target.backbone.embedding,
            teacher.backbone.norm,
            columns,
            ["x"],
        )

    # What is asked for at the end of text and behind it does not count: only rows up to token 19.
    assert score(24, (3,)).top1 == score(20, ()).top1
    tokens[0, 6] = 3
    assert score(24, (3,)).top1 == (0.0, 0.0, 0.0, 0.0)
