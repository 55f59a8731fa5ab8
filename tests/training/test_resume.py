"""Runs that are killed, interrupted or diverge go on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from training_runs import make_run, weights

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.training.run import train
from dynaspec_cli.training.trainer import TrainConfig, Trainer


def same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def saving(config, every):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, save_every=every))


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
    same_weights(tmp_path / "whole", tmp_path / "parts")


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
    same_weights(tmp_path / "whole", tmp_path / "parts")


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
    with pytest.raises(DynaSpecError, match="text of another model, --dtype, corpus"):
        next(train(again))


def test_a_run_lost_between_two_checkpoints_goes_on_from_the_last(tiny_model_dir, corpus, tmp_path):
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "whole", 14)):
        pass
    first = train(saving(make_run(tiny_model_dir, corpus, tmp_path / "first", 14), 4))
    for state in first:
        if state.step == 10:  # what a power cut leaves
            shutil.copytree(tmp_path / "first", tmp_path / "copy")
            first.close()
            break
    assert (tmp_path / "copy" / "model.safetensors").is_file()
    shard = sorted((tmp_path / "copy" / "shards").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])  # and a file that was being written
    again = saving(make_run(tiny_model_dir, corpus, tmp_path / "copy", 14, resume=True), 4)
    assert [state.step for state in train(again)] == [9, 10, 11, 12, 13, 14]
    same_weights(tmp_path / "whole", tmp_path / "copy")


def test_an_update_torn_in_its_middle_is_not_saved(tiny_model_dir, corpus, tmp_path, monkeypatch):
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "whole", 6)):
        pass
    real = torch.optim.AdamW.step
    taken = []

    def interrupted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for _ in train(saving(make_run(tiny_model_dir, corpus, tmp_path / "parts", 6), 2)):
            pass
    monkeypatch.setattr(torch.optim.AdamW, "step", real)
    again = make_run(tiny_model_dir, corpus, tmp_path / "parts", 6, resume=True)
    assert [state.step for state in train(again)] == [3, 4, 5, 6]
    same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_diverged_run_keeps_its_last_good_checkpoint(
    tiny_model_dir, corpus, tmp_path, monkeypatch
):
    for _ in train(make_run(tiny_model_dir, corpus, tmp_path / "whole", 6)):
        pass
    real = TrainConfig.rate
    monkeypatch.setattr(
        TrainConfig, "rate", lambda self, step, at: 1e30 if step == 5 else real(self, step, at)
    )
    diverging = saving(make_run(tiny_model_dir, corpus, tmp_path / "d", 9), 4)
    with pytest.raises(DynaSpecError, match="became nan at step 6; go on from the last checkpoint"):
        for _ in train(diverging):
            pass
    monkeypatch.setattr(TrainConfig, "rate", real)
    again = make_run(tiny_model_dir, corpus, tmp_path / "d", 6, resume=True)
    assert [state.step for state in train(again)] == [5, 6]
    same_weights(tmp_path / "whole", tmp_path / "d")


def test_text_made_in_another_dtype_or_order_is_not_taken_for_this_runs(
    tiny_model_dir, corpus, tmp_path
):
    run = train(make_run(tiny_model_dir, corpus, tmp_path / "run", 3))
    next(run)
    run.close()
    again = make_run(tiny_model_dir, corpus, tmp_path / "run", 3, resume=True, dtype="bfloat16")
    with pytest.raises(DynaSpecError, match="text of another model, --dtype, corpus"):
        next(train(again))
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(corpus.read_text().splitlines())))
    again = make_run(tiny_model_dir, turned, tmp_path / "run", 3, resume=True)
    with pytest.raises(DynaSpecError, match="text of another model, --dtype, corpus"):
        next(train(again))


def test_every_shard_is_trained_on_for_its_own_tokens(tiny_model_dir, corpus, tmp_path):
    """Batches of few prompts are small; as many steps for each would train on them many times."""
    run = make_run(tiny_model_dir, corpus, tmp_path / "p", 1, prompts=(str(corpus),))
    made: list[Trainer] = []

    class Seen(Exception):
        pass

    def watch(self, *args):
        made.append(self)
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", watch)
        with pytest.raises(Seen):
            next(train(run))
    trainer = made[0]
    trainer.config = TrainConfig(batch_tokens=64, passes=2.0)
    trainer._ends, maker = [], trainer.maker
    batches = len(maker.prompts)
    fed = [max(1, round(maker.tokens_of(i) * 2 / 64)) for i in range(batches + 2)]
    expected = [shard for shard, steps in enumerate(fed) for _ in range(steps)]
    assert [trainer._round(step)[0] for step in range(1, sum(fed) + 1)] == expected
    for index in range(3):
        assert maker.get(index).tokens.numel() == maker.tokens_of(index)
    assert maker.tokens_of(batches) == maker.tokens_of(0)
