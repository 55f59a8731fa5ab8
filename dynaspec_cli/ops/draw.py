"""Ops that draw a tree's children and verify them, on the CPU.

Shapes and meaning stand in ``reference_draw.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dynaspec_cli.ops import reference_draw as reference
from dynaspec_cli.ops.extension import EXTENSION, compiled
from dynaspec_cli.ops.reference_draw import CERTAIN

__all__ = [
    "CERTAIN",
    "draw_index",
    "draw_rows",
    "filtered_softmax",
    "sibling_chances",
]

_ops = torch.ops.dynaspec


def _here(x: Tensor) -> bool:
    return x.device.type == "cpu" and compiled(x)


def draw_index(weights: Tensor, u: float) -> int:
    """An index in proportion to weights [V]; -1 where there is no mass."""
    if _here(weights):
        return _ops.draw_index(weights, u)
    return reference.draw_index(weights, u)


def draw_rows(
    weights: Tensor,
    uniforms: Tensor,
    counts: Sequence[int],
    enough: Sequence[float] | None = None,
    replacement: bool = False,
) -> Tensor:
    """int64 [w, k]: up to counts[i] columns of row i of weights [w, S], in draw order, then -1."""
    if _here(weights):
        return _ops.draw_rows(weights.contiguous(), uniforms, counts, enough or [], replacement)
    return reference.draw_rows(weights, uniforms, counts, enough, replacement)


def filtered_softmax(
    logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> Tensor:
    """p float32 [n, V] of finite logits float32 [n, V]."""
    plain = not (top_k or top_p < 1.0 or min_p > 0.0)  # PyTorch's softmax has more threads
    if not plain and logits.dtype == torch.float32 and _here(logits):
        return _ops.filtered_softmax(logits.contiguous(), temperature, top_k, top_p, min_p)
    return reference.filtered_softmax(logits, temperature, top_k, top_p, min_p)


def sibling_chances(
    p: Tensor,
    tokens: Sequence[int],
    columns: Sequence[int],
    ids: Tensor,
    q: Tensor,
    replacement: bool = False,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(chance of each child given that those before it were not passed, then of the node itself;
    residual [V])."""
    args = (tokens, columns, ids, q, replacement, weight)
    if _here(p):
        return _ops.sibling_chances(p.contiguous(), *args)
    return reference.sibling_chances(p, *args)


def _fake_softmax(logits: Tensor, *_: object) -> Tensor:
    return torch.empty_like(logits)


def _fake_rows(weights: Tensor, uniforms: Tensor, *_: object) -> Tensor:
    return torch.empty_like(uniforms, dtype=torch.int64)


def _fake_chances(p: Tensor, tokens: Sequence[int], *_: object) -> tuple[Tensor, Tensor]:
    return p.new_empty((len(tokens) + 1,), dtype=torch.float64), torch.empty_like(p)


_FAKES: dict[str, Callable[..., object]] = {
    "filtered_softmax": _fake_softmax,
    "draw_rows": _fake_rows,
    "sibling_chances": _fake_chances,
}
if EXTENSION.module is not None:
    for _name, _function in _FAKES.items():
        torch.library.register_fake(f"dynaspec::{_name}", _function)
