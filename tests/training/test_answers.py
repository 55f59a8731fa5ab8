"""Answers to prompts that workers write are those of ``generate``, and what is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_runs import make_run

from dynaspec_cli.batch import workers
from dynaspec_cli.config import GenerationConfig, SamplingConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target.events import ignore_progress
from dynaspec_cli.training.answers import Writers, with_answers
from dynaspec_cli.training.prompts import NEW_TOKENS, PromptBatch
from dynaspec_cli.training.run import train
from dynaspec_cli.training.shards import TEMPERATURES
from dynaspec_cli.training.trainer import Trainer


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = [{"task": "ab"[i % 2], "text": f"The fox {i} jumps"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_a_run_trains_on_what_workers_wrote(tiny_model_dir, corpus, prompts, tmp_path, monkeypatch):
    options = {"prompts": (str(prompts),), "workers": 1, "threads": 1}
    seen: list[Trainer] = []
    update = Trainer._update
    monkeypatch.setattr(Trainer, "_update", lambda self, *a: (seen.append(self), update(self, *a)))
    *_, last = train(make_run(tiny_model_dir, corpus, tmp_path / "run", 2, **options))
    assert last.step == 2
    assert last.score is not None
    batches = seen[0].maker.prompts
    engine = Engine.load(str(tiny_model_dir), dtype="float32", device="cpu", threads=1)
    checked = 0
    for index, batch in enumerate(batches):
        assert batch.answers is not None
        for row, (ids, answer) in enumerate(zip(batch.tokens, batch.answers, strict=True)):
            temperature = TEMPERATURES[row % len(TEMPERATURES)]
            config = GenerationConfig(NEW_TOKENS, sampling=SamplingConfig(temperature))
            if temperature == 0 and checked < 4:
                own = list(engine.complete(ids.tolist(), config).token_ids)
                assert answer.tolist() == own + own[-1:] * (NEW_TOKENS - len(own))
                checked += 1
        shard = seen[0].maker.make(index)
        assert torch.equal(shard.tokens, torch.cat([batch.tokens, batch.answers], 1))
        assert shard.prompt == batch.tokens.shape[1]
        assert torch.allclose(shard.features, seen[0].maker.teacher.read(shard.tokens), atol=1e-5)
    assert checked == 4
    # The run goes on with the answers that are there.
    monkeypatch.setattr(workers, "run", lambda *a: pytest.fail("written already"))
    options["resume"] = True
    *_, last = train(make_run(tiny_model_dir, corpus, tmp_path / "run", 3, **options))
    assert last.step == 3


def test_what_is_there_is_kept_and_failures_are_left_out(tmp_path, monkeypatch):
    asked: list[str] = []

    def run(count, prompts, request, should_stop):
        for prompt in prompts:
            asked.append(prompt.id)
            if prompt.id == "0-1":
                yield {"id": prompt.id, "schema": 1, "error": "too long"}
            elif prompt.id == "0-3" and len(asked) < 6:
                raise DynaSpecError("killed")
            else:
                yield {"id": prompt.id, "token_ids": [len(asked), 9]}

    monkeypatch.setattr(workers, "run", run)
    batch = PromptBatch(torch.arange(12).view(6, 2), torch.arange(6))
    writers = Writers(None, "float32", "cpu", 1, 0)
    with pytest.raises(DynaSpecError, match="killed"):
        with_answers([batch], writers, tmp_path, ignore_progress)
    first = list(asked)
    (found,) = with_answers([batch], writers, tmp_path, ignore_progress)
    assert sorted([*first, *asked[len(first) :]]) == sorted([f"0-{i}" for i in range(6)] + ["0-3"])
    assert found.groups.tolist() == [0, 2, 3, 4, 5]
    assert found.tokens.tolist() == batch.tokens[[0, 2, 3, 4, 5]].tolist()
    assert found.answers.shape == (5, NEW_TOKENS)
    assert (found.answers[:, 1:] == 9).all()


def test_options_of_answers(tiny_model_dir, corpus, tmp_path):
    for option in ({"workers": 2}, {"ray": "local"}):
        with pytest.raises(UsageError, match=f"--{next(iter(option))}: needs --prompts"):
            make_run(tiny_model_dir, corpus, tmp_path / "r", 1, **option)
    with pytest.raises(UsageError, match="--workers: expected at least 1"):
        make_run(tiny_model_dir, corpus, tmp_path / "r", 1, prompts=("p",), workers=0)
