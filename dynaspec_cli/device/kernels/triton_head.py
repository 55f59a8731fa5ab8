"""The head over a list of rows in Triton: product, online log-sum-exp and running top-k, then a
join.

``_scan``: program p takes every P-th tile of 64 places of the list. The rows of a tile are gathered
by their numbers, so single rows cost what neighbours do. Logits stay in registers: a tile enters
the running best k of each hidden row only where one of its logits is better than their last.
``_join``: one program a hidden row merges the P lists. What the list's padding holds is not read
beyond the last tile, since the count lies on the device.

Reads: count x d of the weight once for up to 32 hidden rows; launches: 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
PROGRAMS = 264
"""Two a multiprocessor of an H100; results depend on it only by rounding."""
NOWHERE = tl.constexpr(2**30)
MOST_ROWS = 32
"""Hidden rows that a scan holds logits and lists of; more would spill."""


@triton.jit
def _take_best(
    logits, places, best, best_place, K: tl.constexpr, KP: tl.constexpr, W: tl.constexpr
):
    """The best K of the running lists [KP, W] and a tile [TILE, W], a tie to the lower place."""
    slot = tl.arange(0, KP)[:, None]
    new = tl.full([KP, W], float("-inf"), tl.float32)
    new_place = tl.full([KP, W], NOWHERE, tl.int32)
    for j in range(K):
        top = tl.maximum(tl.max(logits, 0), tl.max(best, 0))
        mine = tl.min(tl.where(logits == top[None, :], places, NOWHERE), 0)
        theirs = tl.min(tl.where(best == top[None, :], best_place, NOWHERE), 0)
        place = tl.minimum(mine, theirs)
        place = tl.where(top == float("-inf"), NOWHERE, place)
        new = tl.where(slot == j, top[None, :], new)
        new_place = tl.where(slot == j, place[None, :], new_place)
        logits = tl.where(places == place[None, :], float("-inf"), logits)
        best = tl.where(best_place == place[None, :], float("-inf"), best)
    return new, new_place


@triton.jit
def _scan(
    hidden, weight, rows, count, values, value_places, parts,
    w, temperature,
    D: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, W: tl.constexpr, TILE_: tl.constexpr,
    BLOCK: tl.constexpr, PROGRAMS_: tl.constexpr,
):  # fmt: skip
    """values float32 and value_places int32 [P, KP, W]; parts float32 [P, 2, W]: the maximum and
    the sum of exponentials below it."""
    program = tl.program_id(0)
    total = tl.load(count).to(tl.int32)
    row = tl.arange(0, W)
    inner = tl.arange(0, BLOCK)
    best = tl.full([KP, W], float("-inf"), tl.float32)
    best_place = tl.full([KP, W], NOWHERE, tl.int32)
    highest = tl.full([W], float("-inf"), tl.float32)
    mass = tl.zeros([W], tl.float32)
    for tile in range(program, tl.cdiv(total, TILE_), PROGRAMS_):
        place = tile * TILE_ + tl.arange(0, TILE_)
        real = place < total
        at = tl.load(rows + place, mask=real, other=0)
        sums = tl.zeros([TILE_, W], tl.float32)
        for start in range(0, D, BLOCK):
            column = start + inner
            a = tl.load(
                weight + at[:, None] * D + column[None, :],
                mask=real[:, None] & (column < D)[None, :],
                other=0.0,
            )
            b = tl.load(
                hidden + row[None, :] * D + column[:, None],
                mask=(row < w)[None, :] & (column < D)[:, None],
                other=0.0,
            )
            sums = tl.dot(a, b.to(a.dtype), sums, input_precision="ieee")
        logits = tl.where(real[:, None], sums / temperature, float("-inf"))
        top = tl.maximum(highest, tl.max(logits, 0))
        mass = mass * tl.exp(highest - top) + tl.sum(tl.exp(logits - top[None, :]), 0)
        highest = top
        last = tl.min(tl.where(tl.arange(0, KP)[:, None] < K, best, float("inf")), 0)
        if tl.max((tl.max(logits, 0) > last).to(tl.int32)) > 0:
            places = tl.broadcast_to(place[:, None], [TILE_, W])
            best, best_place = _take_best(logits, places, best, best_place, K, KP, W)
    slot = tl.arange(0, KP)[:, None]
    out = (program * KP + slot) * W + row[None, :]
    tl.store(values + out, best)
    tl.store(value_places + out, best_place)
    tl.store(parts + (program * 2) * W + row, highest)
    tl.store(parts + (program * 2 + 1) * W + row, mass)


@triton.jit
def _join(
    values, value_places, parts, log_q, places,
    K: tl.constexpr, KP: tl.constexpr, W: tl.constexpr, PROGRAMS_: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    program = tl.arange(0, PADDED)
    real = program < PROGRAMS_
    highest = tl.load(parts + (program * 2) * W + row, mask=real, other=float("-inf"))
    mass = tl.load(parts + (program * 2 + 1) * W + row, mask=real, other=0.0)
    top = tl.max(highest, 0)
    mass = tl.where(highest == float("-inf"), 0.0, mass * tl.exp(highest - top))
    lse = top + tl.log(tl.sum(mass, 0))
    slot = tl.arange(0, KP)
    at = (program[:, None] * KP + slot[None, :]) * W + row
    there = real[:, None] & (slot < K)[None, :]
    best = tl.load(values + at, mask=there, other=float("-inf"))
    best_place = tl.load(value_places + at, mask=there, other=NOWHERE)
    for j in range(K):
        value = tl.max(tl.max(best, 1), 0)
        place = tl.min(tl.min(tl.where(best == value, best_place, NOWHERE), 1), 0)
        empty = (value == float("-inf")) | (place == NOWHERE)
        tl.store(log_q + row * K + j, tl.where(lse == lse, value - lse, lse))
        tl.store(places + row * K + j, tl.where(empty, -1, place).to(tl.int64))
        best = tl.where(best_place == place, float("-inf"), best)


def block_of(dtype: torch.dtype) -> int:
    """Columns of a step: 64 of a half type, 128 bytes."""
    return 32 if dtype == torch.float32 else 64


def warps_of(wide: int) -> int:
    return 4 if wide == 16 else 8


def head_topk(
    hidden: Tensor, weight: Tensor, rows: Tensor, count: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """See ``reference.head_topk``."""
    if hidden.shape[0] > MOST_ROWS:
        parts = [
            head_topk(piece, weight, rows, count, k, temperature)
            for piece in hidden.split(MOST_ROWS)
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    n, d = hidden.shape
    hidden = hidden.to(weight.dtype).contiguous()
    programs = min(PROGRAMS, triton.cdiv(rows.shape[0], TILE))
    wide = max(16, triton.next_power_of_2(n))
    deep = max(2, triton.next_power_of_2(k))
    device = hidden.device
    values = torch.empty(programs, deep, wide, dtype=torch.float32, device=device)
    value_places = torch.empty(programs, deep, wide, dtype=torch.int32, device=device)
    parts_ = torch.empty(programs, 2, wide, dtype=torch.float32, device=device)
    log_q = torch.empty(n, k, dtype=torch.float32, device=device)
    places = torch.empty(n, k, dtype=torch.int64, device=device)
    block = block_of(weight.dtype)
    _scan[(programs,)](
        hidden, weight, rows, count, values, value_places, parts_, n, temperature,
        D=d, K=k, KP=deep, W=wide, TILE_=TILE, BLOCK=block, PROGRAMS_=programs,
        num_warps=warps_of(wide),
    )  # fmt: skip
    _join[(n,)](
        values, value_places, parts_, log_q, places,
        K=k, KP=deep, W=wide, PROGRAMS_=programs, PADDED=triton.next_power_of_2(programs),
        num_warps=8,
    )  # fmt: skip
    return log_q, places
