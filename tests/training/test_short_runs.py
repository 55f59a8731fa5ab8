"""Runs of minutes: the first text is small, the clock is that of the command, and something usable
with its score stands at the end, also after Ctrl-C and SIGTERM."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import make_run, weights

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.eagle import load_eagle
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.errors import UsageError
from dynaspec_cli.target.load import load
from dynaspec_cli.training import trainer as trainer_module
from dynaspec_cli.training.prompts import NEW_TOKENS, PromptBatch, growing
from dynaspec_cli.training.run import TrainingRun, WallClock, train
from dynaspec_cli.training.shards import ShardConfig, ShardMaker

ROOT = Path(__file__).parents[2]
RAMP = ShardConfig(tokens=192, length=32, columns=300, first=32)


def test_shards_double_until_they_are_whole() -> None:
    assert [RAMP.tokens_of(i) for i in range(5)] == [32, 64, 128, 192, 192]
    assert RAMP.tokens_of(10**6) == 192
    assert {ShardConfig().tokens_of(i) for i in (0, 1, 99)} == {24576}
    with pytest.raises(UsageError, match="at least 1 token in the first"):
        ShardConfig(first=0)


def test_runs_of_equal_shards_are_described_as_they_were() -> None:
    """Checkpoints and stamps of before there was a ramp are compared with this text."""
    assert str(ShardConfig()) == "ShardConfig(tokens=24576, length=256, columns=40960, seed=0)"
    assert str(RAMP).endswith("seed=0, first=32)")


def test_batches_of_prompts_grow_too() -> None:
    batches = [
        PromptBatch(torch.arange(n * p).reshape(n, p), torch.arange(n))
        for n, p in ((20, 10), (7, 30), (40, 5))
    ]
    assert growing(batches, None) == batches
    grown = growing(batches, 300)
    assert [len(b.tokens) for b in grown][:4] == [2, 4, 8, 6]
    sizes = [b.tokens.numel() + len(b.tokens) * NEW_TOKENS for b in grown]
    assert sizes[0] <= 300
    for attribute in ("tokens", "groups"):
        before = torch.cat([getattr(b, attribute).flatten() for b in batches])
        after = torch.cat([getattr(b, attribute).flatten() for b in grown])
        assert torch.equal(before, after)


def test_a_killed_run_with_growing_shards_ends_where_an_unbroken_one_does(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "whole", 14, shards=RAMP)):
        pass
    first = train(make_run(tiny_model_dir, corpus, tmp_path / "parts", 14, shards=RAMP))
    for state in first:
        if state.step == 5:
            first.close()
            break
    again = make_run(tiny_model_dir, corpus, tmp_path / "parts", 14, shards=RAMP, resume=True)
    assert [state.step for state in train(again)] == list(range(6, 15))
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_equal_shards_goes_on_with_equal_shards(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    """As runs were begun by earlier versions; the command now asks for growing ones."""
    plain = make_run(tiny_model_dir, corpus, tmp_path / "run", 3)
    for _ in train(plain):
        pass
    asked = dataclasses.replace(plain.shards, first=32)
    again = make_run(tiny_model_dir, corpus, tmp_path / "run", 6, shards=asked, resume=True)
    assert [state.step for state in train(again)] == [4, 5, 6]


def test_the_clock_is_the_commands(tiny_model_dir: Path, corpus: Path, tmp_path: Path) -> None:
    """Minutes that loading has used up leave one step, a drafter and its score."""
    config = make_run(tiny_model_dir, corpus, tmp_path / "d", 10**9, minutes=0.5, shards=RAMP)
    states = list(TrainingRun(config, begun=time.perf_counter() - 60).steps())
    assert [state.step for state in states] == [1]
    assert states[0].last
    assert states[0].score is not None
    assert (tmp_path / "d" / "model.safetensors").is_file()


def test_the_clock_keeps_time_for_what_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("dynaspec_cli.training.run.time.perf_counter", lambda: now)
    clock = WallClock(100.0, 2.0)
    assert (clock.share(), clock.left()) == (0.0, 120.0)
    now = 160.0
    assert (clock.share(), clock.left()) == (0.5, 60.0)
    clock.reserve = 60.0
    assert (clock.share(), clock.left()) == (1.0, 0.0)


def test_no_text_is_begun_that_would_not_be_ready(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    whole = ShardMaker.make
    monkeypatch.setattr(ShardMaker, "make", lambda self, i: made.append(i) or whole(self, i))
    config = make_run(tiny_model_dir, corpus, tmp_path / "d", 10**9, minutes=60.0, shards=RAMP)
    run = TrainingRun(config)
    run.trainer.maker._pace = {0: 1e9, 1: 1e9}  # seconds a token
    for state in run.steps():
        if state.step == 30:
            break
    assert set(made) == {0}


def test_a_run_saves_by_time_as_well(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SAVE_EVERY_S", 0.0)
    steps = train(make_run(tiny_model_dir, corpus, tmp_path / "d", 9))
    next(steps)
    assert (tmp_path / "d" / "model.safetensors").is_file()


def test_nothing_is_saved_before_the_first_step(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, *args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module.Trainer, "_update", stop)
    with pytest.raises(KeyboardInterrupt):
        next(train(make_run(tiny_model_dir, corpus, tmp_path / "d", 9)))
    assert not (tmp_path / "d" / "model.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_drafter_and_its_score(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "d"
    process = subprocess.Popen(
        [
            sys.executable, "-c",
            "import dynaspec_cli.ui.lines as lines; lines.PATIENCE_S = 0.1; lines.EVERY_S = 0.2\n"
            "from dynaspec_cli.main import main; main()",
            "train-drafter", "--model", tiny_model_dir, "--corpus", corpus, "--out", out,
            "--minutes", "60", "--dtype", "float32", "--batch-tokens", "64", "--json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:  # lines of progress, though this is no terminal
        seen.append(line)
        if line.startswith("training, step"):
            break
    process.send_signal(number)
    printed, rest = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert "can be used; the same command with --resume goes on" in rest
    assert "Traceback" not in rest
    result = json.loads(printed)
    assert result["steps"] > 0
    assert result["held_out_chain_length"] >= 1.0
    assert (out / "model.safetensors").is_file()
    assert (out / "checkpoint.safetensors").is_file()


def test_a_drafter_for_vllm_keeps_its_form(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    """Trained, resumed and begun from without saying so again; another form is refused."""
    out = tmp_path / "run"
    for _ in train(make_run(tiny_model_dir, corpus, out, 2, engine="vllm")):
        pass
    for _ in train(make_run(tiny_model_dir, corpus, out, 3, resume=True)):
        pass
    config = DrafterConfig.load(out)
    assert (config.use_current_token, config.normed_features) == (False, True)
    target, _ = load(str(tiny_model_dir), "float32", "cpu")
    drafter = load_eagle(DrafterFiles(out, "run"), target)
    features = torch.randn(5, target.hidden_size)
    tokens = torch.arange(5, 11)
    state = drafter.begin(tokens, 32)
    plain = drafter.read(state, features, tokens[1:])
    # The final norm takes a factor off: twice the feature is the same drafter's input.
    state = drafter.begin(tokens, 32)
    torch.testing.assert_close(drafter.read(state, features * 2, tokens[1:]), plain)
    for folder, changes in ((out, {"resume": True}), (tmp_path / "other", {"start": out})):
        run = make_run(tiny_model_dir, corpus, folder, 4, engine="dynaspec", **changes)
        with pytest.raises(UsageError, match="is for vllm, got dynaspec"):
            next(train(run))
