"""Rounds drafted on a pretended GPU: the CPU's tokens and counts. A static target verifies them
where they lie, so that the host waits once a step; another target's host reads the tree first."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import DEVICE, CapturedError, pretend_cuda
from pretend_ops import device_ops
from static_step import captured_rounds, captured_steps

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.device import round as rounds

from .parts import HEADS, SAMPLING, Parts, drafting, noting, parts_on, run
from .shortlists import SHORTLISTS, a_shortlist

STEPS = 6
TREES = ("chain", "eagle2", "ddd", "dyspec", "sequoia", "specinfer")
ONE_WAIT = {("target/static/feed.py", "fetch")}
READS = {("unread_tree.py", "to_host"), ("device/growth.py", "__getitem__")}
WALKS = {
    ("sampling/verify.py", "verify_greedy"),
    ("sampling/verify.py", "of_row"),
    ("sampling/processors.py", "_check"),
    ("sampling/source.py", "categorical"),
    ("ops/reference_draw.py", "_filtered"),
    ("ops/reference_draw.py", "_heavy"),
    ("shortlist/context.py", "add"),
}
"""Waits of a target that leaves the walk to the host."""


@pytest.fixture(scope="module")
def engines(tiny_model_dir: Path, published_head: Callable[[str], Path]) -> Any:
    """By place ("cpu", "static", "transformers") and drafter."""
    made: dict[tuple[str, str], Parts] = {}

    def make(place: str, drafter: str = "eagle") -> Parts:
        if (place, drafter) not in made:
            head = published_head(drafter) if drafter in HEADS else None
            if place == "cpu":
                made[place, drafter] = parts_on(tiny_model_dir, torch.device("cpu"), head=head)
            else:
                with pretend_cuda(), device_ops():
                    made[place, drafter] = parts_on(tiny_model_dir, DEVICE, kind=place, head=head)
        return made[place, drafter]

    return make


def compared(
    engines: Any,
    monkeypatch: Any,
    place: str,
    shortlist: str,
    tree: TreeConfig,
    sampling: str,
    drafter: str = "eagle",
) -> tuple[list[int], set[tuple[str, str]]]:
    """(waits of each step but the first, in which tables are made; which they were)."""
    law = SAMPLING[sampling]
    here, there = engines("cpu", drafter), engines(place, drafter)
    want = run(here, a_shortlist(shortlist, here.target), tree, law, STEPS)
    seen, waits = noting(monkeypatch), []
    with pretend_cuda() as guard, device_ops(), captured_steps(guard), captured_rounds(guard):

        def each(step: int) -> None:
            if guard.hot:
                waits.append(guard.counts["waits"])
            guard.hot = True
            guard.counts.clear()

        made = a_shortlist(shortlist, there.target)
        assert run(there, made, tree, law, STEPS, drafting(there, made), each) == want
        met = set(guard.met)
    assert seen == [True] * STEPS
    return waits, met


def small(tree: str, **given: Any) -> TreeConfig:
    return TreeConfig(policy=tree, size=9, depth=3, width=3, **given)


LAWS = [("greedy", tree, {}) for tree in TREES]
LAWS += [("sampled", tree, {}) for tree in TREES]
LAWS += [("sampled", tree, {"draw": "sample"}) for tree in ("chain", "eagle2", "ddd")]
LAWS += [("filtered", tree, {}) for tree in ("dyspec", "specinfer")]
SOON = {
    ("full", "greedy", "sequoia"),
    ("full", "sampled", "dyspec"),
    ("nanospec", "greedy", "ddd"),
    ("nanospec", "filtered", "specinfer"),
    ("late router", "greedy", "eagle2"),
    ("late router", "sampled", "eagle2"),
    ("late router", "filtered", "dyspec"),
    ("early router", "sampled", "specinfer"),
}
"""The others are marked slow."""
CASES = [
    pytest.param(shortlist, *law, marks=() if (shortlist, *law[:2]) in SOON else pytest.mark.slow)
    for shortlist in SHORTLISTS
    for law in LAWS
]


@pytest.mark.parametrize(("shortlist", "sampling", "tree", "given"), CASES)
def test_the_cpus_tokens_with_one_wait_a_step(
    engines: Any,
    monkeypatch: pytest.MonkeyPatch,
    shortlist: str,
    sampling: str,
    tree: str,
    given: dict[str, Any],
) -> None:
    made = small(tree, **given)
    waits, met = compared(engines, monkeypatch, "static", shortlist, made, sampling)
    assert waits == [1] * (STEPS - 1)
    assert met == ONE_WAIT


@pytest.mark.parametrize(
    ("sampling", "tree"),
    [("greedy", "eagle2"), ("greedy", "sequoia"), ("sampled", "dyspec"), ("sampled", "specinfer")],
)
def test_a_target_that_walks_on_the_host(
    engines: Any, monkeypatch: pytest.MonkeyPatch, sampling: str, tree: str
) -> None:
    given = ("transformers", "late router", small(tree), sampling)
    _, met = compared(engines, monkeypatch, *given)
    assert ("unread_tree.py", "to_host") in met
    assert met <= READS | WALKS


def test_trees_verified_from_their_leaves_are_read_first(
    engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small("dyspec", verification="traversal")
    _, met = compared(engines, monkeypatch, "static", "nanospec", tree, "sampled")
    assert ("unread_tree.py", "to_host") in met
    assert met <= READS | WALKS | ONE_WAIT


@pytest.mark.parametrize("drafter", HEADS)
@pytest.mark.parametrize(
    ("shortlist", "sampling", "tree"),
    [
        ("full", "greedy", "eagle2"),
        ("full", "hot", "dyspec"),
        ("nanospec", "greedy", "sequoia"),
        ("late router", "hot", "specinfer"),
    ],
)
def test_published_heads(
    engines: Any,
    monkeypatch: pytest.MonkeyPatch,
    drafter: str,
    shortlist: str,
    sampling: str,
    tree: str,
) -> None:
    made = small(tree)
    waits, _ = compared(engines, monkeypatch, "static", shortlist, made, sampling, drafter)
    assert waits == [1] * (STEPS - 1)


def test_published_heads_are_accepted_at_times(engines: Any) -> None:
    """Else the tests above would compare plain decoding."""
    for drafter in HEADS:
        parts = engines("cpu", drafter)
        made = a_shortlist("full", parts.target)
        assert run(parts, made, small("dyspec"), SAMPLING["hot"], STEPS).accepted > 2


FAULTS: dict[str, Callable[[Any], Any]] = {
    "a value read back": lambda x: x.log_q.sum().item(),
    "a truth": lambda x: bool(x.ids[0, 0] > 0),
    "a shape that depends on data": lambda x: x.ids.nonzero(),
    "a tensor of the host": lambda x: x.ids.copy_(torch.zeros(x.ids.shape, dtype=torch.int64)),
    "operations that follow the data": lambda x: x.ids + 1 if next(TURN) % 2 else x.ids * 2 + 1,
}
TURN = count()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_a_round_is_found(
    engines: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    score = rounds.score

    def planted(*args: Any) -> Any:
        candidates = score(*args)
        if args[0].device == DEVICE:
            FAULTS[fault](candidates)
        return candidates

    monkeypatch.setattr(rounds, "score", planted)
    with pytest.raises(CapturedError):
        compared(engines, monkeypatch, "static", "full", small("chain"), "greedy")
