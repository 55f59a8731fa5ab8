"""Rounds drafted on a pretended GPU: the CPU's tokens, and no wait but for the tree."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from pretend import DEVICE, pretend_cuda
from pretend_ops import device_ops
from test_engine_on_cuda import PROMPT, SAMPLING, Parts, _parts, _shortlist

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.device.drafting import DeviceDrafting
from dynaspec_cli.engine.draft import Draft, Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.tree.registry import create_tree

STEPS = 5
VERIFIES = {
    ("sampling/verify.py", "verify_greedy"),
    ("sampling/verify.py", "of_row"),
    ("sampling/processors.py", "_check"),
    ("sampling/source.py", "categorical"),
    ("ops/reference_draw.py", "_filtered"),
    ("ops/reference_draw.py", "_heavy"),
    ("shortlist/context.py", "add"),
}
"""Waits of a verification by a target that leaves the walk to the host."""
DRAFTS = {("device/drafting.py", "to_host"), ("device/growth.py", "__getitem__")}


@pytest.fixture(scope="module")
def on_cpu(tiny_model_dir: Any) -> Parts:
    return _parts(tiny_model_dir, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def on_cuda(tiny_model_dir: Any) -> Parts:
    with pretend_cuda(), device_ops():
        return _parts(tiny_model_dir, DEVICE, torch.float32)


def _tokens(parts: Parts, name: str, tree: str, sampling: str, guard: Any = None) -> list[int]:
    config, law = TreeConfig(policy=tree, size=9, depth=3, width=3), SAMPLING[sampling]
    shortlist = _shortlist(name, parts.target)
    at_once = None
    if guard is not None:
        at_once = DeviceDrafting.of(parts.drafter, shortlist, parts.target)
        assert at_once is not None
    policy = create_tree(config, law, GeneratorSource(law.seed, DRAFT_STREAM))
    speculation = Speculation(parts.drafter, shortlist, policy, size=9, at_once=at_once)
    steps = decode(parts.target, PROMPT, 200, law, GeneratorSource(law.seed), speculation)
    tokens = list(next(steps).token_ids)
    for i, emission in enumerate(islice(steps, STEPS)):
        tokens += emission.token_ids
        if guard is not None and i == 0:  # tables are made in the first round
            guard.hot = True
    return tokens


CASES = [
    (shortlist, sampling, tree)
    for shortlist in ("full", "nanospec", "dynaspec, early router", "dynaspec, late router")
    for sampling, tree in (
        ("greedy", "eagle2"),
        ("greedy", "sequoia"),
        ("sampled", "dyspec"),
        ("sampled", "specinfer"),
    )
]


@pytest.mark.parametrize(("shortlist", "sampling", "tree"), CASES)
def test_the_same_tokens_and_one_wait_a_round(
    on_cpu: Parts,
    on_cuda: Parts,
    monkeypatch: pytest.MonkeyPatch,
    shortlist: str,
    sampling: str,
    tree: str,
) -> None:
    expected = _tokens(on_cpu, shortlist, tree, sampling)
    seen: list[bool] = []
    at_once = Draft._grown_at_once
    monkeypatch.setattr(
        Draft, "_grown_at_once", lambda self, *args: seen.append(at_once(self, *args)) or seen[-1]
    )
    with pretend_cuda() as guard, device_ops():
        assert _tokens(on_cuda, shortlist, tree, sampling, guard) == expected
    assert seen == [True] * STEPS
    assert ("device/drafting.py", "to_host") in guard.met
    assert set(guard.met) <= DRAFTS | VERIFIES
