"""The static target with rounds drafted at once: what both halves of a step on a GPU do, on CPU
tensors, against the native target that is drafted for step by step."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from test_static_target import PROMPT, SAMPLING, STEPS, drafter_of

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.device.drafting import DeviceDrafting
from dynaspec_cli.engine.draft import Draft, Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.shortlist.dynaspec import DynaSpecShortlist
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist
from dynaspec_cli.shortlist.router import Router
from dynaspec_cli.tree.registry import create_tree

TREES = ("chain", "eagle2", "ddd", "dyspec", "sequoia", "specinfer")
CORE, CLUSTERS = 8, 6


def a_shortlist(name: str, target: Any) -> Any:
    weight = target.head_weight()
    if name == "full":
        return FullShortlist(build_head(weight))
    if name == "nanospec":
        return NanoSpecShortlist(build_head(weight), 32)
    g = torch.Generator().manual_seed(2)
    shapes = {"w2": (CLUSTERS, weight.columns), "b2": (CLUSTERS,)}
    tables = {part: torch.randn(shape, generator=g) for part, shape in shapes.items()}
    order = torch.randperm(weight.rows, generator=g)
    offsets = torch.linspace(CORE, weight.rows, CLUSTERS + 1).int()
    router = Router("output", tables, target.device)
    head = build_head(weight, order)
    return DynaSpecShortlist(head, target, router, offsets, (60, 40), CORE, 16)


def tokens_of(target: Any, reader: Any, shortlist: str, tree: str, name: str) -> list[int]:
    """Drafted at once by the static target's side, else step by step."""
    law, config = SAMPLING[name], TreeConfig(tree, size=9, depth=3, width=3)
    drafter, made = drafter_of(target, reader), a_shortlist(shortlist, target)
    static = target.kernels.startswith("static")
    at_once = DeviceDrafting.of(drafter, made, target) if static else None
    policy = create_tree(config, law, GeneratorSource(law.seed, DRAFT_STREAM))
    speculation = Speculation(drafter, made, policy, size=9, at_once=at_once)
    source = GeneratorSource(law.seed)
    steps = islice(decode(target, PROMPT, 100, law, source, speculation), STEPS + 1)
    return [token for emission in steps for token in emission.token_ids]


CASES = [("llama", s, t, "greedy") for s in ("full", "nanospec", "routed") for t in TREES]
CASES += [(f, "routed", t, "sampled") for f in ("llama", "gemma3") for t in TREES]
CASES += [("qwen3", "nanospec", t, "filtered") for t in ("dyspec", "specinfer")]


@pytest.mark.parametrize(("family", "shortlist", "tree", "name"), CASES)
def test_the_same_tokens(
    make_target: Any,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    shortlist: str,
    tree: str,
    name: str,
) -> None:
    native, static = make_target(family, "native"), make_target(family, "static")
    reader = make_target(family, "transformers")
    want = tokens_of(native, reader, shortlist, tree, name)
    seen: list[bool] = []

    def noted(tree: Any) -> Any:
        seen.append(tree is not None)
        return tree

    at_once = Draft._grown_at_once
    monkeypatch.setattr(Draft, "_grown_at_once", lambda self, *args: noted(at_once(self, *args)))
    assert tokens_of(static, reader, shortlist, tree, name) == want
    assert seen == [True] * STEPS
