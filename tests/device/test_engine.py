"""Rounds drafted at once are the rounds that the engine drafts step by step: tokens, trees and
counts, for every tree and shortlist, greedy and sampled."""

from __future__ import annotations

import gc
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.drafting import DeviceDrafting
from dynaspec_cli.device.round import Outputs, Round
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.engine.draft import Draft, Speculation
from dynaspec_cli.engine.events import StepStats
from dynaspec_cli.engine.session import decode
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.shortlist.base import BlockShortlist
from dynaspec_cli.shortlist.dynaspec import DynaSpecShortlist
from dynaspec_cli.shortlist.frequency import FrequencyShortlist
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist
from dynaspec_cli.shortlist.router import Router
from dynaspec_cli.target.load import load_transformers
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.tree.registry import create_tree

from .capture import recorded

PROMPT = torch.tensor([5, 9, 200, 31, 77, 5, 9])
STEPS, CORE, CLUSTERS = 7, 40, 12
SHORTLISTS = ("full", "pa-fr", "two tokens", "nanospec", "no router", "early router", "late router")
TREES = ("chain", "eagle2", "ddd", "dyspec", "sequoia", "specinfer")
SAMPLING = {
    "greedy": SamplingConfig(),
    "sampled": SamplingConfig(temperature=1.0, seed=3),
    "filtered": SamplingConfig(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, seed=3),
}


class Parts(NamedTuple):
    target: Any
    drafter: EagleDrafter


@pytest.fixture(scope="module")
def parts(tiny_model_dir: Path) -> Parts:
    target = load_transformers(tiny_model_dir, "tiny", torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    module = from_target(drafter_config(target, 1, 1.0), target)
    return Parts(target, EagleDrafter(module.config, dict(module.state_dict()), target))


def a_shortlist(name: str, target: Any) -> BlockShortlist[Any, Any]:
    weight = target.head_weight()
    vocab, dim = weight.rows, weight.columns
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))
    if name == "full":
        return FullShortlist(build_head(weight))
    if name == "nanospec":
        return NanoSpecShortlist(build_head(weight), 32)
    if name == "two tokens":  # fewer than the policies ask for
        return FrequencyShortlist("fr-spec", build_head(weight, order[:2]), (2,))
    if name == "pa-fr":
        return FrequencyShortlist("pa-fr", build_head(weight, order[:150]), (150, 100))
    g = torch.Generator().manual_seed(2)
    shapes = {"w2": (CLUSTERS, 16 if name == "early router" else dim), "b2": (CLUSTERS,)}
    if name == "early router":
        shapes |= {"w1": (16, 2 * dim), "b1": (16,)}
    weights = {part: torch.randn(shape, generator=g) for part, shape in shapes.items()}
    kind = "mlp" if name == "early router" else "output"
    router = None if name == "no router" else Router(kind, weights, target.device)
    offsets = torch.linspace(CORE, vocab, CLUSTERS + 1).int()
    head = build_head(weight, order)
    return DynaSpecShortlist(head, target, router, offsets, (160, 120), CORE, 30)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each round was drafted at once."""
    seen: list[bool] = []
    at_once = Draft._grown_at_once

    def watch(self: Draft, *args: Any) -> bool:
        seen.append(at_once(self, *args))
        return seen[-1]

    monkeypatch.setattr(Draft, "_grown_at_once", watch)
    return seen


def run(
    parts: Parts,
    shortlist: str,
    tree: str,
    sampling: SamplingConfig,
    at_once: bool,
    config: TreeConfig | None = None,
) -> list[tuple[list[int], Any]]:
    """(tokens, counts) of each step."""
    config = config or TreeConfig(policy=tree, size=9, depth=3, width=3)
    made = a_shortlist(shortlist, parts.target)
    device = DeviceDrafting.of(parts.drafter, made, parts.target) if at_once else None
    assert (device is not None) == at_once
    return decoded(parts, made, device, sampling, config)


def decoded(
    parts: Parts,
    made: BlockShortlist[Any, Any],
    device: DeviceDrafting | None,
    sampling: SamplingConfig,
    config: TreeConfig,
    prompt: Tensor = PROMPT,
    room: int = 200,
) -> list[tuple[list[int], Any]]:
    policy = create_tree(config, sampling, GeneratorSource(sampling.seed, DRAFT_STREAM))
    heat = 1.0 if policy.needs_distribution else config.temperature(sampling)
    speculation = Speculation(parts.drafter, made, policy, heat, size=9, at_once=device)
    source = GeneratorSource(sampling.seed)
    steps = decode(parts.target, prompt, room, sampling, source, speculation)
    return [(step.token_ids, counts(step.step)) for step in islice(steps, STEPS)]


def counts(step: StepStats | None) -> Any:
    if step is None:
        return None
    sizes, covered = step.shortlist_sizes, step.covered
    return step.drafted, step.accepted, step.depth, sizes, covered, step.drawn, step.distinct


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
    want = run(parts, shortlist, tree, SAMPLING[name], at_once=False)
    seen = watched(monkeypatch)
    assert run(parts, shortlist, tree, SAMPLING[name], at_once=True) == want
    assert seen == [True] * (STEPS - 1)
    drafted = [step[0] for _, step in want if step is not None]
    assert max(drafted) > 1


@pytest.mark.parametrize("shortlist", ["full", "nanospec", "late router"])
def test_requests_borrow_what_others_left(parts: Parts, shortlist: str) -> None:
    """Caches, and so graphs, serve one request after the other; a longer one gets larger ones."""
    config, made = TreeConfig("dyspec", 9, depth=3, width=3), a_shortlist(shortlist, parts.target)
    device = DeviceDrafting.of(parts.drafter, made, parts.target)
    assert device is not None
    prompts = [(PROMPT, 200), (PROMPT.flip(0), 150), (PROMPT + 3, 250), (PROMPT, 200)]
    lent: list[int] = []
    for prompt, room in prompts:
        args = (SAMPLING["greedy"], config, prompt, room)
        got = decoded(parts, made, device, *args)
        gc.collect()
        assert got == decoded(parts, a_shortlist(shortlist, parts.target), None, *args)
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

    want = run(parts, shortlist, tree, SAMPLING[name], at_once=False)
    monkeypatch.setattr(Round, "__call__", noted)
    assert run(parts, shortlist, tree, SAMPLING[name], at_once=True) == want
    for rounds in seen.values():
        assert all(each == rounds[0] for each in rounds)


def test_a_deeper_round_than_the_mask_has_bits_is_drafted_step_by_step(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TreeConfig("eagle2", 60, depth=6, width=16)
    want = run(parts, "full", "eagle2", SAMPLING["greedy"], False, config)
    seen = watched(monkeypatch)
    assert run(parts, "full", "eagle2", SAMPLING["greedy"], True, config) == want
    assert not any(seen)
