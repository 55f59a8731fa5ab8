"""Rounds drafted at once are the rounds that the engine drafts step by step: tokens, trees and
counts, for every tree and shortlist, greedy and sampled."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.round import Outputs, Round

from .capture import recorded
from .parts import PROMPT, SAMPLING, Parts, Run, drafting, noting, parts_on, run
from .shortlists import SHORTLISTS, a_shortlist

STEPS = 7
TREES = ("chain", "eagle2", "ddd", "dyspec", "sequoia", "specinfer")


@pytest.fixture(scope="module")
def parts(tiny_model_dir: Path) -> Parts:
    return parts_on(tiny_model_dir, torch.device("cpu"))


def rounds(
    parts: Parts, shortlist: str, tree: str | TreeConfig, sampling: SamplingConfig, at_once: bool
) -> Run:
    if isinstance(tree, str):
        tree = TreeConfig(policy=tree, size=9, depth=3, width=3)
    made = a_shortlist(shortlist, parts.target)
    return run(parts, made, tree, sampling, STEPS, drafting(parts, made) if at_once else None)


CASES = [(name, "greedy", tree) for name in SHORTLISTS for tree in TREES]
CASES += [
    (name, "sampled", tree)
    for name in ("full", "two tokens", "nanospec", "late router")
    for tree in TREES
]
CASES += [("early router", "filtered", tree) for tree in TREES]


@pytest.mark.parametrize(("shortlist", "name", "tree"), CASES)
def test_the_same_rounds(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, shortlist: str, name: str, tree: str
) -> None:
    want = rounds(parts, shortlist, tree, SAMPLING[name], at_once=False)
    seen = noting(monkeypatch)
    assert rounds(parts, shortlist, tree, SAMPLING[name], at_once=True) == want
    assert seen == [True] * STEPS
    assert max(drafted for drafted, *_ in want.counts) > 1


@pytest.mark.parametrize("shortlist", ["full", "nanospec", "late router"])
def test_requests_borrow_what_others_left(parts: Parts, shortlist: str) -> None:
    """Caches, and so graphs, serve one request after the other; a longer one gets larger ones."""
    config, made = TreeConfig("dyspec", 9, depth=3, width=3), a_shortlist(shortlist, parts.target)
    device = drafting(parts, made)
    prompts = [(PROMPT, 200), (PROMPT.flip(0), 150), (PROMPT + 3, 250), (PROMPT, 200)]
    lent: list[int] = []
    for prompt, room in prompts:
        ours = (config, SAMPLING["greedy"], STEPS)
        got = run(parts, made, *ours, device, prompt=prompt, room=room)
        gc.collect()
        fresh = a_shortlist(shortlist, parts.target)
        assert got == run(parts, fresh, *ours, prompt=prompt, room=room)
        (left,) = device.pool._free
        lent.append(id(left))
    assert lent[0] == lent[1] != lent[2] == lent[3]


@pytest.mark.parametrize("shortlist", ["pa-fr", "nanospec", "early router", "late router"])
@pytest.mark.parametrize(("name", "tree"), [("greedy", "dyspec"), ("sampled", "specinfer")])
def test_every_round_is_the_same_operations(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, shortlist: str, name: str, tree: str
) -> None:
    """None of which waits: what a graph holds."""
    seen: dict[Round, list[Any]] = {}
    call = Round.__call__

    def noted(self: Round, *args: Any) -> Outputs:
        outputs: list[Outputs] = []
        if self not in seen:
            call(self, *args)  # as before a capture: tables are made
        operations = recorded(lambda: outputs.append(call(self, *args)))
        seen.setdefault(self, []).append(operations)
        return outputs[0]

    want = rounds(parts, shortlist, tree, SAMPLING[name], at_once=False)
    monkeypatch.setattr(Round, "__call__", noted)
    assert rounds(parts, shortlist, tree, SAMPLING[name], at_once=True) == want
    for met in seen.values():
        assert all(each == met[0] for each in met)


def test_a_deeper_round_than_the_mask_has_bits_is_drafted_step_by_step(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TreeConfig("eagle2", 60, depth=6, width=16)
    want = rounds(parts, "full", config, SAMPLING["greedy"], False)
    seen = noting(monkeypatch)
    assert rounds(parts, "full", config, SAMPLING["greedy"], True) == want
    assert not any(seen)
