"""Attention of a tree's rows over a cache of any length in Triton: split keys, then a join.

``_attend``: one program a tile of query rows (a row and a head of a group each), a head of keys and
a split of the keys; it keeps a running maximum and sum as flash attention does. How many keys there
are is read on the device, so the grid does not depend on it and splits share them evenly. A row's
ancestors are the bits of one number. ``_join``: one program a query row and head of queries.

Reads: each key and value once for every tile of query rows; launches: 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynaspec_cli.device.kernels.reference import SPLITS


@triton.jit
def _attend(
    q, keys, values, length, depth, ancestors, sums, stats,
    n, t, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS_: tl.constexpr, SPLITS_: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """q [n, HEADS, SIZE]; sums float32 [SPLITS, n, HEADS, SIZE]; stats float32 [SPLITS, n, HEADS,
    2]: maximum and sum of a split's numerators."""
    kv_head, split = tl.program_id(1), tl.program_id(2)
    kv_heads: tl.constexpr = HEADS // GROUP
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, head = place // GROUP, kv_head * GROUP + place % GROUP
    real = row < n
    column = tl.arange(0, PADDED)
    inside = column < SIZE
    at = (row * HEADS + head)[:, None] * SIZE + column[None, :]
    query = tl.load(q + at, mask=real[:, None] & inside[None, :], other=0.0)
    query = query.to(keys.dtype.element_ty)
    committed = tl.load(length).to(tl.int32)
    bits = tl.load(ancestors + row, mask=real, other=0)
    own = tl.load(depth + row, mask=real, other=0).to(tl.int32)
    total = committed + t
    each = tl.cdiv(tl.cdiv(total, KEYS_), SPLITS_) * KEYS_
    highest = tl.full([ROWS], -1e30, tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(split * each, tl.minimum((split + 1) * each, total), KEYS_):
        slot = start + tl.arange(0, KEYS_)
        there = slot < total
        cell = (slot * kv_heads + kv_head) * SIZE
        key = tl.load(
            keys + cell[None, :] + column[:, None],
            mask=there[None, :] & inside[:, None],
            other=0.0,
        )
        score = tl.dot(query, key, input_precision="ieee") * scale
        if CAPPED:
            turned = 2.0 / (1.0 + tl.exp(-2.0 * (score / softcap))) - 1.0
            score = softcap * turned
        below = slot - committed
        shift = tl.maximum(tl.minimum(below, 63), 0).to(tl.int64)
        drafted = ((bits[:, None] >> shift[None, :]) & 1) == 1
        seen = (below < 0)[None, :] | (drafted & (below >= 0)[None, :])
        if WINDOWED:
            deep = tl.load(depth + n + tl.maximum(below, 0), mask=there & (below >= 0), other=0)
            position = tl.where(below < 0, slot, committed + deep.to(tl.int32))
            seen = seen & ((committed + own)[:, None] - position[None, :] < window)
        seen = seen & there[None, :]
        score = tl.where(seen, score, -1e30)
        top = tl.maximum(highest, tl.max(score, 1))
        weight = tl.where(seen, tl.exp(score - top[:, None]), 0.0).to(values.dtype.element_ty)
        shrink = tl.exp(highest - top)
        mass = mass * shrink + tl.sum(weight.to(tl.float32), 1)
        value = tl.load(
            values + cell[:, None] + column[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        out = out * shrink[:, None] + tl.dot(weight, value, input_precision="ieee")
        highest = top
    at = (split * n + row) * HEADS + head
    tl.store(sums + at[:, None] * SIZE + column[None, :], out, mask=real[:, None] & inside[None, :])
    tl.store(stats + at * 2, highest, mask=real)
    tl.store(stats + at * 2 + 1, mass, mask=real)


@triton.jit
def _join(
    sums, stats, out, cells,
    SIZE: tl.constexpr, PADDED: tl.constexpr, SPLITS_: tl.constexpr,
):  # fmt: skip
    """out float32 [cells, SIZE] of the splits' parts, ``cells`` = n x heads."""
    cell = tl.program_id(0)
    split = tl.arange(0, SPLITS_)
    column = tl.arange(0, PADDED)
    inside = column < SIZE
    at = split * cells + cell
    highest = tl.load(stats + at * 2)
    mass = tl.load(stats + at * 2 + 1)
    share = tl.exp(highest - tl.max(highest, 0))
    part = tl.load(sums + at[:, None] * SIZE + column[None, :], mask=inside[None, :], other=0.0)
    total = tl.sum(mass * share, 0)
    found = tl.sum(part * share[:, None], 0) / total
    tl.store(out + cell * SIZE + column, found, mask=inside)


def shape_of(
    cells: int, dtype: torch.dtype, masked: bool, padded: int = 128
) -> tuple[int, int, int, int]:
    """(query rows a program, keys a step, warps, stages) for so many rows and heads of a group,
    ``masked`` with a window or a softcap, heads of ``padded`` numbers: what registers and shared
    memory of every architecture hold."""
    if padded > 128:
        if dtype == torch.float32:
            return 16, 16, 4, 1
        return (32, 32, 8, 2) if masked else (16, 32, 8, 2)
    if dtype == torch.float32:
        return 16, 32, 4, 1
    if cells <= 16:
        return 16, 64, 4, 2
    if cells <= 32:
        return 32, 64, 4, 2
    return (32, 32, 4, 2) if masked else (64, 64, 8, 2)


def join_warps(splits: int, padded: int) -> int:
    """A thread holds 64 of the numbers that a row and head of all splits has."""
    return max(1, splits * padded // 2048)


def tree_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    depth: Tensor,
    ancestors: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    splits: int = SPLITS,
) -> Tensor:
    """See ``reference.tree_attention``."""
    n, heads, size = q.shape
    kv_heads = keys.shape[1]
    group, t = heads // kv_heads, depth.shape[0] - n
    padded = max(16, triton.next_power_of_2(size))
    masked = window > 0 or softcap > 0
    rows, step, warps, stages = shape_of(n * group, keys.dtype, masked, padded)
    device = q.device
    sums = torch.empty(splits, n, heads, size, dtype=torch.float32, device=device)
    stats = torch.empty(splits, n, heads, 2, dtype=torch.float32, device=device)
    out = torch.empty(n, heads * size, dtype=torch.float32, device=device)
    grid = (triton.cdiv(n * group, rows), kv_heads, splits)
    _attend[grid](
        q.contiguous(), keys, values, length, depth, ancestors, sums, stats,
        n, t, scale, softcap, window,
        HEADS=heads, GROUP=group, SIZE=size, PADDED=padded, ROWS=rows, KEYS_=step, SPLITS_=splits,
        CAPPED=softcap > 0, WINDOWED=window > 0, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    _join[(n * heads,)](
        sums, stats, out, n * heads, SIZE=size, PADDED=padded, SPLITS_=splits,
        num_warps=join_warps(splits, padded),
    )  # fmt: skip
    return out
