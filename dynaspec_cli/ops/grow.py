"""Ops that grow a draft tree on the host, one call a draft step.

Layout of the state, shapes and meaning stand in ``reference_grow.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynaspec_cli.ops import reference_grow as reference
from dynaspec_cli.ops.extension import EXTENSION, compiled

_ops = torch.ops.dynaspec


def new_tree(token: int, capacity: int, root_value: float) -> tuple[Tensor, Tensor]:
    """(nodes, values) of a tree that is its root, ``token``; room for ``capacity`` nodes."""
    run = reference.new_tree if EXTENSION.module is None else _ops.new_tree
    return run(token, capacity, root_value)


def grow_best(
    nodes: Tensor,
    values: Tensor,
    log_q: Tensor,
    ids: Tensor,
    size: int,
    width: int,
    least: float,
    logarithms: bool,
    whole_beam: bool = False,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """(the next frontier's tokens, parents and source [w'], as in ``protocols.Frontier``;
    probability of the best new nodes); in place."""
    args = (nodes, values, log_q, ids, size, width, least, logarithms, whole_beam)
    return _ops.grow_best(*args) if compiled(nodes) else reference.grow_best(*args)


def grow_drawn(
    nodes: Tensor,
    values: Tensor,
    log_probs: Tensor,
    log_q: Tensor,
    ids: Tensor,
    uniforms: Tensor,
    size: int,
    least: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    shared: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """(the frontier as ``grow_best``; q [w, S]; probability of the best new nodes); in place."""
    rest = (size, least, temperature, top_k, top_p, min_p, shared)
    if log_probs.dtype == torch.float32 and compiled(nodes):
        scores = (log_probs.contiguous(), log_q.contiguous(), ids.contiguous())
        return _ops.grow_drawn(nodes, values, *scores, uniforms, *rest)
    return reference.grow_drawn(nodes, values, log_probs, log_q, ids, uniforms, *rest)


def fill_plan(
    nodes: Tensor,
    values: Tensor,
    plan: Tensor,
    places: Tensor,
    tokens: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(the frontier as ``grow_best``; places below each of its nodes [w']; node of each token [w,
    k]); in place."""
    args = (nodes, values, plan, places, tokens.contiguous(), columns.contiguous())
    return _ops.fill_plan(*args) if compiled(nodes) else reference.fill_plan(*args)


def draw_plan(
    nodes: Tensor,
    values: Tensor,
    plan: Tensor,
    places: Tensor,
    log_probs: Tensor,
    ids: Tensor,
    uniforms: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    replacement: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
    """(the frontier and the places as ``fill_plan``; q [w, S]; columns [w, k]; node of each draw
    [w, k]; is every score finite); in place."""
    rest = (temperature, top_k, top_p, min_p, replacement)
    if log_probs.dtype == torch.float32 and compiled(nodes):
        scores = (log_probs.contiguous(), ids.contiguous())
        return _ops.draw_plan(nodes, values, plan, places, *scores, uniforms, *rest)
    return reference.draw_plan(nodes, values, plan, places, log_probs, ids, uniforms, *rest)


def grown_tree(nodes: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """(int64 [5, n + 1]: token, parent's row, column, draft step and row therein; float64 [n]: what
    the paths are worth, best first; draws; nodes below the root, discarded ones too)."""
    run = _ops.grown_tree if compiled(nodes) else reference.grown_tree
    return run(nodes, values)


def _fake_fill(
    nodes: Tensor, values: Tensor, plan: Tensor, places: Tensor, tokens: Tensor, *_: object
) -> tuple[Tensor, ...]:
    wide = torch.library.get_ctx().new_dynamic_size()
    return *(nodes.new_empty((wide,)) for _ in range(4)), torch.empty_like(tokens)


_FAKES: dict[str, Callable[..., object]] = {"fill_plan": _fake_fill}
if EXTENSION.module is not None:
    for _name, _function in _FAKES.items():
        torch.library.register_fake(f"dynaspec::{_name}", _function)
