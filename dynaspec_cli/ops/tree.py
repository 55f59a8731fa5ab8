"""Ops on draft trees: mask, greedy walk, KV commit.

Shapes and meaning stand in ``reference_tree.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynaspec_cli.ops import reference_tree as reference
from dynaspec_cli.ops import tree_checks as checks
from dynaspec_cli.ops.extension import EXTENSION, compiled
from dynaspec_cli.ops.fakes import on_one_device

_ops = torch.ops.dynaspec


def _compiled(op: str, x: Tensor) -> bool:
    if x.device.type == "cpu":
        return compiled(x)
    key = x.device.type.upper()
    return compiled(x) and torch._C._dispatch_has_kernel_for_dispatch_key(f"dynaspec::{op}", key)


def tree_mask(parents: Tensor) -> tuple[Tensor, Tensor]:
    """(mask bool [n, n]: row j is i or an ancestor of i; depth int64 [n]) of parents int64 [n]."""
    if _compiled("tree_mask", parents):
        return _ops.tree_mask(parents)
    checks.check_parents("tree_mask", parents)
    return reference.tree_mask(parents)


def greedy_walk(tokens: Tensor, parents: Tensor, choices: Tensor) -> Tensor:
    """Accepted rows int64 [a], root first; ``choices`` is the target's argmax at each row."""
    if _compiled("greedy_walk", parents):
        return _ops.greedy_walk(tokens, parents, choices)
    checks.check_walk("greedy_walk", tokens, parents)
    checks.check_ids("greedy_walk", "choices", choices, parents.numel())
    return reference.greedy_walk(tokens, parents, choices)


def kv_commit(caches: list[Tensor], base: Tensor, rows: Tensor) -> None:
    """Move rows ``base + rows[i]`` to ``base + i`` in place, in every cache [T, ...]; ``base``
    int64 [1] on their device. ``rows`` may end with -1, which move nothing."""
    if rows.device.type == "cpu":
        rows = _unpadded(rows)
    if _compiled("kv_commit", rows if not caches else caches[0]):
        _ops.kv_commit(caches, base, rows)
        return
    if rows.device.type == "cpu":
        checks.check_commit(caches, base, rows)
    reference.kv_commit(caches, base, rows)


def _unpadded(rows: Tensor) -> Tensor:
    there = (rows != -1).nonzero()
    return rows[: int(there[-1]) + 1] if there.numel() else rows[:0]


def _fake_mask(parents: Tensor) -> tuple[Tensor, Tensor]:
    n = parents.shape[0]
    return parents.new_empty((n, n), dtype=torch.bool), torch.empty_like(parents)


def _fake_path(tokens: Tensor, parents: Tensor, choices: Tensor) -> Tensor:
    return parents.new_empty((torch.library.get_ctx().new_dynamic_size(),))


def _fake_commit(caches: list[Tensor], base: Tensor, rows: Tensor) -> None:
    return None


_FAKES: dict[str, Callable[..., object]] = {
    "tree_mask": _fake_mask,
    "greedy_walk": _fake_path,
    "kv_commit": _fake_commit,
}
if EXTENSION.module is not None:
    for _name, _function in _FAKES.items():
        torch.library.register_fake(f"dynaspec::{_name}", on_one_device(_name, _function))
