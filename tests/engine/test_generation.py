"""The decode loop on a tiny model: every combination gives the target's own text."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import DoneEvent, NoticeEvent, StepStats, TokensEvent
from dynaspec_cli.engine.stats import mean_acceptance_length
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.load import load, load_transformers
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.tree.registry import TREES

PROMPTS = ["The capital of France is", "def add(a, b):", "Это просто"]


@pytest.fixture(scope="module")
def engine(tiny_model_dir) -> Engine:
    target, tokenizer = load(str(tiny_model_dir), dtype="float32", device="cpu")
    reader = load_transformers(tiny_model_dir, "tiny", torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    module = from_target(drafter_config(reader, 1, 1.0), reader)
    drafter = EagleDrafter(module.config, dict(module.state_dict()), target)
    return Engine(target, tokenizer, drafter)


def config(shortlist="full", tree="eagle2", size=None, new=40, temperature=0.0, **more):
    return GenerationConfig(
        max_new_tokens=new,
        sampling=SamplingConfig(temperature=temperature, seed=more.pop("seed", 0)),
        tree=TreeConfig(policy=tree, size=more.pop("nodes", 7), depth=3, width=3),
        shortlist=ShortlistConfig(shortlist, size),
        **more,
    )


def transformers_greedy(folder, ids, new):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("tree", TREES.names())
@pytest.mark.parametrize(("shortlist", "size"), [("full", None), ("nanospec", 32)])
def test_greedy_text_is_the_targets_own(engine, tiny_model_dir, tree, shortlist, size):
    for prompt in PROMPTS:
        result = engine.complete(prompt, config(shortlist, tree, size))
        reference = transformers_greedy(tiny_model_dir, engine.encode(prompt), 40)
        assert list(result.token_ids) == reference
        assert result.num_spec_steps > 0
        assert result.mean_acceptance_length == mean_acceptance_length(result.steps)
        settled = sum(step.accepted + 1 for step in result.steps) + 1
        assert settled >= result.new_tokens
        sizes = [size for step in result.steps for size in step.shortlist_sizes]
        assert max(sizes) <= (size or engine.target.vocab_size)


def test_autoregressive_arm_is_the_same_loop_without_nodes(engine, tiny_model_dir):
    result = engine.complete(PROMPTS[0], config(), speculative=False)
    assert list(result.token_ids) == transformers_greedy(
        tiny_model_dir, engine.encode(PROMPTS[0]), 40
    )
    assert result.num_spec_steps == 0
    assert result.num_draft_tokens == 0


@pytest.mark.parametrize("tree", ["chain", "eagle2", "dyspec"])
def test_a_seed_reproduces_and_another_does_not(engine, tree):
    first = engine.complete(PROMPTS[0], config(tree=tree, temperature=1.0, seed=3))
    again = engine.complete(PROMPTS[0], config(tree=tree, temperature=1.0, seed=3))
    other = engine.complete(PROMPTS[0], config(tree=tree, temperature=1.0, seed=4))
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_requests_do_not_touch_each_other(engine):
    alone = engine.complete(PROMPTS[2], config("nanospec", size=32))
    engine.complete(PROMPTS[0], config("nanospec", size=32))
    after = engine.complete(PROMPTS[2], config("nanospec", size=32))
    assert alone.token_ids == after.token_ids
    assert [s.shortlist_sizes for s in alone.steps] == [s.shortlist_sizes for s in after.steps]
    assert [s.accepted for s in alone.steps] == [s.accepted for s in after.steps]


def test_eos_inside_an_accepted_run_ends_the_text(engine):
    whole = engine.complete(PROMPTS[0], config())
    inside = next(
        sum(s.accepted + 1 for s in whole.steps[:i]) + 1
        for i, step in enumerate(whole.steps)
        if step.accepted
    )
    stop_id = whole.token_ids[inside]
    ended = Engine(engine.target, _WithEos(engine.tokenizer, stop_id), engine.drafter)
    result = ended.complete(PROMPTS[0], config())
    first = list(whole.token_ids).index(stop_id)
    assert result.finish_reason == "eos"
    assert result.token_ids == whole.token_ids[: first + 1]
    # What was accepted behind the end of the text counts nowhere.
    settled = 1 + sum(step.accepted + 1 for step in result.steps)
    assert settled - result.new_tokens in (0, 1)  # 1: the text ended before the last bonus token
    last = result.steps[-1]
    assert last.covered is None or len(last.covered) <= last.accepted + 1


def test_a_step_is_cut_behind_its_last_token():
    step = StepStats(drafted=6, accepted=4, depth=4, covered=(True, True, False, True))
    assert (step.up_to(2).accepted, step.up_to(2).covered) == (2, (True, True))
    assert step.up_to(5) == step


def test_float16(tiny_model_dir, tiny_drafter_dir):
    engine = Engine.load(
        str(tiny_model_dir), dtype="float16", device="cpu", drafter=str(tiny_drafter_dir)
    )
    plain = engine.complete(PROMPTS[0], config(new=12), speculative=False)
    result = engine.complete(PROMPTS[0], config(new=12))
    assert result.token_ids == plain.token_ids
    assert result.num_spec_steps > 0
    assert result.settings["drafter"] == str(tiny_drafter_dir)


def test_settings_hold_what_was_used(engine):
    settings = engine.complete(PROMPTS[0], config("nanospec", "dyspec", new=2)).settings
    assert settings["shortlist_size"] == 400  # nanospec's cap, cut to the vocabulary
    assert settings["tree_threshold"] == 2 / 7


class _WithEos:
    """A tokenizer with one more end-of-text token."""

    def __init__(self, inner, eos):
        self._inner, self.eos_ids = inner, (eos,)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_stop_text_cuts_tokens_and_text(engine):
    whole = engine.complete(PROMPTS[0], config())
    stop = whole.text[5:8]
    result = engine.complete(PROMPTS[0], config(stop=(stop,)))
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.token_ids == whole.token_ids[: result.new_tokens]


def test_events_concatenate_to_the_result_and_stop_on_request(engine):
    events = list(engine.generate(PROMPTS[1], config()))
    tokens = [e for e in events if isinstance(e, TokensEvent)]
    done = events[-1]
    assert isinstance(done, DoneEvent)
    assert tuple(i for e in tokens for i in e.token_ids) == done.result.token_ids
    assert "".join(e.text for e in tokens) == done.result.text
    calls = iter([False, False, True])
    short = list(engine.generate(PROMPTS[1], config(), should_stop=lambda: next(calls)))[-1]
    assert short.result.finish_reason == "interrupted"
    assert done.result.token_ids[: short.result.new_tokens] == short.result.token_ids
    assert len(short.result.steps) == 2


def test_the_readers_time_is_not_decoding(engine, monkeypatch):
    """A reader that takes an hour for every event changes no figure."""
    away, clock = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + away[0])
    result = None
    for event in engine.generate(PROMPTS[0], config(new=12)):
        away[0] += 3600.0
        if isinstance(event, DoneEvent):
            result = event.result
    assert len(result.steps) > 1
    assert (result.new_tokens - 1) / result.tokens_per_second < 3600.0
    assert all(sum(step.seconds.values()) < 3600.0 for step in result.steps)


def test_an_interrupt_inside_a_step_keeps_the_text(engine, monkeypatch):
    calls = {"n": 0}
    verify = engine.target.verify

    def interrupted(state, tree):
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return verify(state, tree)

    monkeypatch.setattr(engine.target, "verify", interrupted)
    result = engine.complete(PROMPTS[0], config())
    assert result.finish_reason == "interrupted"
    assert result.new_tokens == 1 + sum(step.accepted + 1 for step in result.steps)
    assert len(result.steps) == 3


def test_context_limit_and_empty_prompt(engine):
    limit = engine.target.max_context
    ids = [5] * (limit - 3)
    result = engine.complete(ids, config(new=50))
    assert (result.new_tokens, result.finish_reason) in {(3, "length")} | {
        (n, "eos") for n in (1, 2, 3)
    }
    with pytest.raises(DynaSpecError, match="shorten the prompt"):
        engine.complete([5] * limit, config())
    with pytest.raises(DynaSpecError, match="the prompt is empty"):
        engine.complete("  ", config())


def test_compare_reports_identity_and_divergence(engine):
    settings = config(new=20)
    result = engine.compare(PROMPTS[0], engine.complete(PROMPTS[0], settings), settings)
    assert result.comparison.identical
    assert result.comparison.first_divergence is None
    wrong = dataclasses.replace(
        result, token_ids=(*result.token_ids[:4], 399, *result.token_ids[5:])
    )
    assert result.token_ids[4] != 399
    found = engine.compare(PROMPTS[0], wrong, settings).comparison
    assert not found.identical
    assert found.first_divergence.position == 4
    assert found.first_divergence.logit_gap > 0
    assert not found.first_divergence.tie


def test_no_drafter_is_said(engine):
    plain = Engine(engine.target, engine.tokenizer, None)
    events = list(plain.generate(PROMPTS[0], config(new=4)))
    assert isinstance(events[0], NoticeEvent)
    assert "no drafter" in events[0].message
    assert events[-1].result.num_spec_steps == 0
