"""Draft trees in fixed shapes: ancestors, the two walks, what is kept.

A tree of at most n rows is ``parents`` int64 [n] (the root's is -1) and ``count`` int64 [1], its
rows; those behind are padding, whatever stands there. No loop depends on the tree: a node
is on the path where it and all its ancestors are the first of their siblings to pass, which is
decided for all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """``ancestors`` bool [n, n]: row j is i or above it. ``elder`` bool [n, n]: row j is a sibling
    of i that is tried before it. ``depth`` int64 [n]; ``real`` bool [n]: no padding. ``number``
    int64 [n]: 0, 1, 2, …"""

    parents: Tensor
    ancestors: Tensor
    elder: Tensor
    depth: Tensor
    real: Tensor
    number: Tensor


def rows_of_tree(parents: Tensor, count: Tensor) -> Rows:
    """By doubling: the relation "at most 2^k levels above" times itself has 2^(k + 1)."""
    n = parents.numel()
    number = torch.arange(n, device=parents.device)
    real = number < count
    parents = torch.where(real, parents, -1)
    own = number[:, None] == number[None]
    reach = (own | (parents[:, None] == number[None])).float()
    for _ in range(max(n - 1, 1).bit_length()):
        reach = (torch.mm(reach, reach) > 0).float()
    ancestors = reach > 0
    child = real & (parents >= 0)
    elder = (parents[:, None] == parents[None]) & child[:, None] & child[None]
    elder = elder & (number[:, None] > number[None])
    return Rows(parents, ancestors, elder, ancestors.sum(1) - 1, real, number)


def chain_rows(count: int, device: torch.device) -> Rows:
    """Of consecutive tokens: each row's parent is the one before it."""
    number = torch.arange(count, device=device)
    ancestors = torch.ones(count, count, dtype=torch.bool, device=device).tril_()
    return Rows(
        number - 1,
        ancestors,
        torch.zeros_like(ancestors),
        number,
        torch.ones_like(number, dtype=torch.bool),
        number,
    )


@dataclass(frozen=True)
class Path:
    """``accepted`` bool [n]: the rows on the path; ``last`` int64 [1]: its last row; ``size`` int64
    [1]; ``rows`` int64 [n]: the path, root first, then padding."""

    accepted: Tensor
    last: Tensor
    size: Tensor
    rows: Tensor


def path_of(rows: Rows, passed: Tensor) -> Path:
    """The walk in which a row is taken where ``passed`` bool [n] says so and no elder sibling's
    does."""
    n = rows.number.numel()
    beaten = (rows.elder & passed[None]).any(1)
    stays = (passed & ~beaten) | (rows.number == 0)
    accepted = rows.real & ~(rows.ancestors & ~stays[None]).any(1)
    place = torch.where(accepted, accepted.cumsum(0) - 1, n)
    path = torch.zeros(n + 1, dtype=torch.int64, device=place.device)
    path = path.scatter(0, place, rows.number).narrow(0, 0, n)
    last = torch.where(accepted, rows.number, 0).amax(0, keepdim=True)
    return Path(accepted, last, accepted.sum(0, keepdim=True), path)


def greedy_path(rows: Rows, tokens: Tensor, choices: Tensor) -> tuple[Path, Tensor]:
    """(path, bonus int64 [1]): a row passes whose token is the target's choice at its parent.
    ``choices`` int64 [n]."""
    above = rows.parents.clamp(min=0)
    passed = (tokens == choices.index_select(0, above)) & (rows.parents >= 0)
    path = path_of(rows, passed)
    return path, choices.index_select(0, path.last)


def sampled_path(
    rows: Rows, tokens: Tensor, p: Tensor, uniforms: Tensor
) -> tuple[Path, Tensor, Tensor, Tensor]:
    """(path, bonus int64 [1], uniforms used int64 [1], is there mass for the bonus bool [1]): the
    walk of ``sampling/verify.py`` over a tree of points, each child tried with what its elder
    siblings left of p. ``p`` float32 [n, V]; ``uniforms`` float64 [m], used in the order in which
    that walk draws: how many were drawn before a row is tried follows from the tree alone.

    (docs/methods/exactness.md; ``ops.sibling_chances`` without draws.)
    """
    above = rows.parents.clamp(min=0)
    child = rows.real & (rows.parents >= 0)
    ids = tokens.clamp(min=0)
    chance = p.index_select(0, above).gather(1, ids[:, None])[:, 0].double()
    chance = torch.where(child, chance, 0.0)
    whole = p.sum(1, dtype=torch.float64).index_select(0, above)
    elder = rows.elder.double()
    left = whole - torch.mv(elder, chance)
    share = torch.where(left > 0, chance / left, 0.0)

    # A child is certain where all mass of its parent's p is its siblings' and its own, and no
    # sibling behind it has any.
    brothers = child[:, None] & child[None] & (rows.parents[:, None] == rows.parents[None])
    family = brothers.double()
    some = ((chance > 0) & child).double()
    spread = (p > 0).sum(1).double().index_select(0, above)
    alone = torch.mv(family, some) == spread
    none_left = whole - torch.mv(family, chance) < 1e-9 * whole
    younger = torch.mv(elder.t(), some) == 0
    certain = child & (chance > 0) & alone & none_left & younger

    tossed = (child & ~certain).double()
    before = torch.mv(elder, tossed)
    above_all = torch.mv(rows.ancestors.double(), before + tossed)
    coin = (above_all - tossed).long()  # drawn before the row itself is tried
    u = uniforms.index_select(0, coin.clamp(0, uniforms.numel() - 1))
    path = path_of(rows, child & (certain | (u < share)))

    mine = (rows.parents == path.last) & child
    used = above_all.index_select(0, path.last) + (tossed * mine).sum(0, keepdim=True)
    residual = p.index_select(0, path.last)[0]
    factor = torch.where(mine, 0.0, 1.0).to(residual.dtype)
    kept = torch.ones_like(residual).scatter_reduce(0, ids, factor, "amin")
    return path, *drawn_token(residual * kept, uniforms, used.long())


def drawn_token(weights: Tensor, uniforms: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(token, uniforms used, is there mass): ``ops.draw_index`` of weights [V] by the next
    uniform."""
    line = weights.cumsum(0, dtype=torch.float64)
    total = line[-1:]
    point = uniforms.index_select(0, used.clamp(max=uniforms.numel() - 1)) * total
    last = torch.searchsorted(line, total)
    token = torch.minimum(torch.searchsorted(line, point, right=True), last)
    return token, used + 1, total > 0
