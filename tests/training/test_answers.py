"""Answers to prompts that workers write are those of ``generate``, and what is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import make_run

from dynaspec_cli.batch import workers
from dynaspec_cli.config import GenerationConfig, SamplingConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target.events import ignore_progress
from dynaspec_cli.training.answers import STAMP, Answers, Writers
from dynaspec_cli.training.prompts import NEW_TOKENS, TEMPERATURES, PromptBatch
from dynaspec_cli.training.run import TrainingRun, train
from dynaspec_cli.training.shards import ShardMaker, ended
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


@pytest.fixture
def writing(monkeypatch):
    """What ``workers.run`` is asked for, by id; it dies at 0-3 before it is asked for six."""
    asked: dict[str, float] = {}

    def run(count, prompts, request, should_stop):
        for prompt in prompts:
            asked[prompt.id] = prompt.temperature
            if prompt.id == "0-1":
                yield {"id": prompt.id, "schema": 1, "error": "too long"}
            elif prompt.id == "0-3" and not asked.get("died"):
                asked["died"] = asked.pop("0-3")
                raise DynaSpecError("killed")
            else:
                yield {"id": prompt.id, "token_ids": [len(asked), 9]}

    monkeypatch.setattr(workers, "run", run)
    return asked


WRITERS = Writers(None, "float32", "cpu", 1, 0)


def test_what_is_there_is_kept_and_failures_are_left_out(tmp_path, writing):
    batch = PromptBatch(torch.arange(12).view(6, 2), torch.arange(6))
    with pytest.raises(DynaSpecError, match="killed"):
        Answers([batch], tmp_path, [9], "m").write(WRITERS, ignore_progress)
    first = list(writing)
    assert first == ["0-0", "0-1", "0-2", "died"]
    (found,) = Answers([batch], tmp_path, [9], "m").write(WRITERS, ignore_progress)
    assert list(writing)[len(first) :] == ["0-3", "0-4", "0-5"]
    assert [writing[f"0-{i}"] for i in range(6)] == [*TEMPERATURES, TEMPERATURES[0]]
    assert found.groups.tolist() == [0, 2, 3, 4, 5]
    assert found.tokens.tolist() == batch.tokens[[0, 2, 3, 4, 5]].tolist()
    assert found.answers.shape == (5, NEW_TOKENS)
    assert (found.answers[:, 1:] == 9).all()
    assert not list(tmp_path.glob("*.lock"))


def test_no_prompt_could_be_answered(tmp_path, writing):
    batches = [PromptBatch(torch.arange(4).view(2, 2)[:1], torch.arange(1))]
    answers = Answers(batches, tmp_path, [9], "m")
    with answers._file(0.0) as file:
        file.append({"id": "0-0", "schema": 1, "error": "too long"})
    answers = Answers(batches, tmp_path, [9], "m")
    with pytest.raises(DynaSpecError, match="no prompt could be answered"):
        answers.write(WRITERS, ignore_progress)
    assert answers.of(0) is None


def test_answers_to_something_else_are_refused(tmp_path, writing):
    batch = PromptBatch(torch.arange(2).view(1, 2), torch.arange(1))
    other = PromptBatch(batch.tokens + 1, batch.groups)
    Answers([batch], tmp_path, [9], "m").write(WRITERS, ignore_progress)
    for batches, made_by in (([batch], "n"), ([other], "m")):
        with pytest.raises(DynaSpecError, match="answers of another model or --dtype, or to other"):
            Answers(batches, tmp_path, [9], made_by).of(0)
    assert Answers([batch], tmp_path, [9], "m").of(0) is not None


def test_the_teachers_answers_are_lines_too(tiny_model_dir, corpus, prompts, tmp_path):
    """Without workers: the lines hold what is trained on, and are what a shard is made of again."""
    out = tmp_path / "run"
    run = TrainingRun(make_run(tiny_model_dir, corpus, out, 2, prompts=(str(prompts),)))
    [*run.steps()]
    maker = run.trainer.maker
    made = sorted((out / "shards").glob("shard-*"))
    assert made
    lines = {}
    for path in sorted(out.glob("answers-*.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            lines[line["id"]] = float(path.stem.removeprefix("answers-")), line["token_ids"]
    assert {name.split("-")[0] for name in lines} == {str(i) for i in range(len(made))}
    for index in range(len(made)):
        batch, shard = maker.prompts[index], maker.get(index)
        assert batch.answers is None
        for row, tokens in enumerate(shard.tokens[:, shard.prompt :].tolist()):
            temperature, ids = lines[f"{index}-{row}"]
            assert temperature == TEMPERATURES[row % len(TEMPERATURES)]
            assert ids == tokens[: len(ids)]
            assert len(ids) == NEW_TOKENS or ids[-1] in maker.ends
            assert not set(ids[:-1]) & set(maker.ends)
        # A shard that is lost is made of them, without writing again.
        again = ShardMaker(
            *(maker.teacher, maker.texts, maker.groups, maker.config, maker.folder),
            *(maker.prompts, maker.ends, Answers(maker.prompts, out, maker.ends, "as read")),
        )
        (out / STAMP).unlink()
        again.teacher = SimpleNamespace(head=maker.teacher.head, read=maker.teacher.read)
        made[index].unlink()
        found = again.get(index)
        going = ~ended(shard.tokens, shard.prompt, maker.ends)
        assert torch.equal(found.tokens[going], shard.tokens[going])
        assert torch.allclose(found.features[going], shard.features[going], atol=1e-4)
        assert found.prompt == shard.prompt
        assert torch.equal(found.groups, shard.groups)
        again.answers.close()


def test_every_passing_has_answers_of_its_own(tiny_model_dir, corpus, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"text": "The fox"}) + "\n", encoding="utf-8")
    options = {"prompts": (str(path),)}
    run = TrainingRun(make_run(tiny_model_dir, corpus, tmp_path / "run", 2, **options))
    maker = run.trainer.maker
    assert len(maker.prompts) == 1
    for index in range(5):
        maker.get(index)
    maker.answers.close()
    for index, temperature in enumerate(TEMPERATURES):
        text = (tmp_path / "run" / f"answers-{temperature}.jsonl").read_text(encoding="utf-8")
        assert f'"{index}-0"' in text


def test_options_of_answers(tiny_model_dir, corpus, tmp_path):
    for option in ({"workers": 2}, {"ray": "local"}):
        with pytest.raises(UsageError, match=f"--{next(iter(option))}: needs --prompts"):
            make_run(tiny_model_dir, corpus, tmp_path / "r", 1, **option)
    with pytest.raises(UsageError, match="--workers: expected at least 1"):
        make_run(tiny_model_dir, corpus, tmp_path / "r", 1, prompts=("p",), workers=0)
