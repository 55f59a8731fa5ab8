"""The compiled tree ops' argument checks in Python, for the PyTorch fallback: the same messages."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.ops.checks import expect


def check_ids(op: str, name: str, x: Tensor, n: int) -> None:
    expect(
        x.dtype == torch.int64 and tuple(x.shape) == (n,), op, name, f"contiguous int64 [{n}]", x
    )


def check_parents(op: str, parents: Tensor) -> None:
    """A parent precedes its children; -1 is the root's."""
    fits = parents.dim() == 1 and parents.numel() > 0
    expect(fits, op, "parents", "int64 of shape [n] with at least one row", parents)
    expect(parents.dtype == torch.int64, op, "parents", "dtype int64", parents)
    for i, parent in enumerate(parents.tolist()):
        if (parent == -1 and i == 0) or 0 <= parent < i:
            continue
        wanted = "-1" if i == 0 else "a row before it"
        raise ValueError(f"{op}: parents[{i}]: expected {wanted}, got {parent}")


def check_walk(op: str, tokens: Tensor, parents: Tensor) -> None:
    check_parents(op, parents)
    check_ids(op, "tokens", tokens, parents.numel())


def check_commit(caches: list[Tensor], base: Tensor, rows: Tensor) -> None:
    op = "kv_commit"
    check_ids(op, "base", base, 1)
    base_len = int(base)
    expect(base_len >= 0, op, "base", "0 or more", base_len)
    check_ids(op, "rows", rows, rows.numel())
    previous = -1
    for i, row in enumerate(rows.tolist()):
        expect(row > previous, op, "rows", "strictly ascending rows from 0 on", f"{row} at {i}")
        previous = row
    end = base_len + previous + 1 if rows.numel() else 0
    for cache in caches:
        fits = cache.dim() > 0 and cache.shape[0] >= end
        expect(fits, op, "caches", f"contiguous tensors of at least {end} rows", cache)
