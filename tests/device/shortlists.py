"""Every kind of shortlist, small, for a target of any vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from dynaspec_cli.shortlist.base import BlockShortlist
from dynaspec_cli.shortlist.dynaspec import DynaSpecShortlist
from dynaspec_cli.shortlist.frequency import FrequencyShortlist
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist
from dynaspec_cli.shortlist.router import Router

SHORTLISTS = ("full", "pa-fr", "two tokens", "nanospec", "no router", "early router", "late router")
CLUSTERS = 12


def a_shortlist(name: str, target: Any) -> BlockShortlist[Any, Any]:
    """Fixed ones ("two tokens": fewer than the policies ask for), nanospec's, and dynaspec's with
    each kind of router."""
    weight = target.head_weight()
    vocab, dim = weight.rows, weight.columns
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))
    if name == "full":
        return FullShortlist(build_head(weight))
    if name == "nanospec":
        return NanoSpecShortlist(build_head(weight), 32)
    if name == "two tokens":
        return FrequencyShortlist("fr-spec", build_head(weight, order[:2]), (2,))
    if name == "pa-fr":
        most = vocab * 3 // 8
        budgets = (most, most * 2 // 3)
        return FrequencyShortlist("pa-fr", build_head(weight, order[:most]), budgets)
    g = torch.Generator().manual_seed(2)
    early = name == "early router"
    shapes = {"w2": (CLUSTERS, 16 if early else dim), "b2": (CLUSTERS,)}
    if early:
        shapes |= {"w1": (16, 2 * dim), "b1": (16,)}
    weights = {part: torch.randn(shape, generator=g) for part, shape in shapes.items()}
    router = None
    if name != "no router":
        router = Router("mlp" if early else "output", weights, target.device)
    core = vocab // 10
    offsets = torch.linspace(core, vocab, CLUSTERS + 1).int()
    budgets = (vocab * 2 // 5, vocab * 3 // 10)
    head = build_head(weight, order)
    return DynaSpecShortlist(head, target, router, offsets, budgets, core, vocab * 3 // 40)
