"""The walk of ``sampling/verify.py`` over a tree whose children were drawn, in fixed shapes.

What a node's children are tried with (docs/methods/exactness.md, ``ops.sibling_chances``) follows
from p, q and the draws alone, not from the coins. So all nodes are tried at once, draw after draw:
R is what is left of p, D of q, on the tokens of the shortlist; R beyond it is p times a factor. A
token that is drawn again below a node was rejected before, so that nothing is left of it: only its
first draw can be passed, and a later one takes a coin and does no more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.target.static.tree import Path, Rows, drawn_token, path_of
from dynaspec_cli.unread_tree import UnreadDraws


def drawn_path(
    rows: Rows, p: Tensor, uniforms: Tensor, draws: UnreadDraws
) -> tuple[Path, Tensor, Tensor, Tensor]:
    """``tree.sampled_path`` of a tree whose children were drawn: (path, bonus int64 [1], uniforms
    used int64 [1], is there mass for the bonus bool [1]). ``p`` float32 [n, V]; ``uniforms``
    float64 [m], used in the order in which that walk draws."""
    n = rows.number.numel()
    real = draws.row >= 0
    parent = rows.parents.index_select(0, draws.row.clamp(min=0)).clamp(min=0)
    number = torch.arange(real.numel(), device=p.device)
    same = (parent[:, None] == parent[None]) & real[:, None] & real[None]
    earlier = (same & (number[:, None] > number[None])).double()

    tried = _tried(rows, p, draws, parent, earlier.sum(1).long())
    tossed = (real & ~tried.certain).double()
    before = torch.mv(earlier, tossed)

    # Of each row its first draw; rows without one read what stands behind the last draw.
    place = torch.where(real, draws.row, n)
    first = torch.full_like(place, number.numel())[:1].expand(n + 1)
    first = first.scatter_reduce(0, place, number, "amin").narrow(0, 0, n)

    def of_rows(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 1)).index_select(0, first)

    mine = of_rows(tossed)
    above = torch.mv(rows.ancestors.double(), of_rows(before) + mine)
    coin = (above - mine).long()
    u = uniforms.index_select(0, coin.clamp(0, uniforms.numel() - 1))
    child = rows.real & (rows.parents >= 0)
    certain = of_rows(tried.certain.double()) > 0
    path = path_of(rows, child & (certain | (u < of_rows(tried.chance))))

    below = real & (parent == path.last)
    used = above.index_select(0, path.last) + (tossed * below).sum(0, keepdim=True)
    whole = p.index_select(0, path.last)[0]
    left = torch.where(below.any(), tried.residual(draws, whole, path.last), whole)
    return path, *drawn_token(left, uniforms, used.long())


class _Tried(NamedTuple):
    """``chance`` float64 [t] of each draw, given that those before it were not passed; ``certain``
    bool [t]: only rounding could reject it. ``ids`` int64 [f, S], V for padding; ``left`` float64
    [f, S]: what is left of p there."""

    chance: Tensor
    certain: Tensor
    ids: Tensor
    left: Tensor

    def residual(self, draws: UnreadDraws, p: Tensor, row: Tensor) -> Tensor:
        """What is left of p [V] of a tree row int64 [1], all of whose draws were rejected."""
        law = draws.law.index_select(0, row).clamp(min=0)
        ids, left = (x.index_select(0, law)[0] for x in (self.ids, self.left))
        whole = torch.nn.functional.pad(p, (0, 1)).scatter(0, ids, left.to(p.dtype))
        return whole.narrow(0, 0, p.numel())


def _tried(rows: Rows, p: Tensor, draws: UnreadDraws, parent: Tensor, rank: Tensor) -> _Tried:
    """Every draw below every row, in the order int64 [t] ``rank`` of those below its ``parent``."""
    laws, most, vocab = draws.q.shape[0], draws.most, p.shape[1]
    real = draws.row >= 0
    place = draws.law.index_select(0, parent) * most + rank.clamp(max=most - 1)
    place = torch.where(real, place, laws * most)
    columns = torch.full((laws * most + 1,), -1, device=p.device)
    columns = columns.scatter(0, place, draws.column).narrow(0, 0, laws * most).view(laws, most)
    row_of = torch.where(draws.law >= 0, draws.law, laws)
    node = torch.zeros(laws + 1, dtype=torch.int64, device=p.device)
    node = node.scatter(0, row_of, rows.number).narrow(0, 0, laws)

    ids = torch.cat([i.expand(w, -1) for i, w in zip(draws.ids, draws.widths, strict=True)])
    ids = torch.where(ids >= 0, ids, vocab)
    mine = torch.nn.functional.pad(p.index_select(0, node), (0, 1))
    r = mine.gather(1, ids).double()
    outside = mine.scatter(1, ids, 0.0).sum(1, dtype=torch.float64)
    factor = 1.0 / (r.sum(1) + outside)
    r, outside = r * factor[:, None], outside * factor
    d = draws.q.double()
    d = d * (1.0 / d.sum(1, keepdim=True))  # as R, so that R = D where p = q
    alive = torch.ones_like(factor, dtype=torch.bool)
    chances, certains = [], []
    for column in columns.unbind(1):
        at = column.clamp(min=0)[:, None]
        asked = alive & (column >= 0)
        chance = (r.gather(1, at) / d.gather(1, at))[:, 0]
        rest = (r - d).clamp(min=0)
        total = rest.sum(1) + outside
        certain = asked & ~(total > 0)  # R = D up to rounding
        chances.append(torch.where(asked, chance, 0.0))
        certains.append(certain)
        goes_on = asked & ~certain
        share = torch.where(goes_on, 1.0 / total, 1.0)
        r = torch.where(goes_on[:, None], rest * share[:, None], r)
        outside, factor = outside * share, factor * share
        if not draws.replacement:
            d = torch.where(asked[:, None], d.scatter(1, at, 0.0), d)
            mass = d.sum(1, keepdim=True)
            alive = alive & (mass[:, 0] > 0)
            d = torch.where(alive[:, None], d / mass, d)
    chance, certain = (
        torch.nn.functional.pad(torch.stack(x, 1).flatten(), (0, 1)).index_select(0, place)
        for x in (chances, certains)
    )
    return _Tried(chance, certain, ids, r / factor[:, None])
