"""Draws of a draft step in fixed shapes: ``ops.draw_children`` on padded rows and columns.

The uniforms are the request's own. The host takes them from its generator one draft step after
the other, as many as the step has rows; how many that is only the device knows. So the most that a
round can need are drawn ahead, the device reads them in the host's order and counts them, and the
host puts back what was not used (uniforms.py): a seed gives one text on every device, up to
rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.device.candidates import Candidates, Law


@dataclass(frozen=True)
class DrawRule:
    """The filters of ``ops.filtered_softmax``."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Uniforms(NamedTuple):
    """``values`` float64 [n] in [0, 1), of which ``used`` int64 [] were."""

    values: Tensor
    used: Tensor

    def take(self, rows: Tensor, draws: int | Tensor, k: int) -> tuple[Tensor, Uniforms]:
        """(float64 [w, k], what is left): ``draws`` for each of the ``rows`` (bool [w]) that are
        there, one row after the other; the other entries mean nothing."""
        place = torch.cumsum(rows, 0) - 1
        at = self.used + place[:, None] * draws + torch.arange(k, device=rows.device)
        found = self.values[at.clamp(0, self.values.shape[0] - 1)]
        return found, Uniforms(self.values, self.used + rows.sum() * draws)


class Draws(NamedTuple):
    """``columns`` int64 [w, k] of q, -1 behind a row's last; their ``tokens`` and ``chances``
    float64 [w, k]; ``mass`` float64 [w] of the shortlist; ``bad`` bool []: a score of a live row is
    NaN or infinite."""

    columns: Tensor
    tokens: Tensor
    chances: Tensor
    mass: Tensor
    bad: Tensor


def filtered_softmax(logits: Tensor, rule: DrawRule) -> Tensor:
    """p float32 [w, S] of logits float32 [w, S], whose columns may be padded with -inf:
    ``ops.filtered_softmax``."""
    scaled = logits if rule.temperature == 1.0 else logits / rule.temperature
    if not (rule.top_k or rule.top_p < 1.0 or rule.min_p > 0.0):
        return torch.softmax(scaled, -1)
    if 0 < rule.top_k < scaled.shape[1]:
        border = torch.topk(scaled, rule.top_k).values[:, -1:]
        scaled = scaled.where(scaled >= border, -math.inf)
    p = torch.softmax(scaled, -1, dtype=torch.float64)
    if rule.top_p < 1.0:
        order = torch.sort(scaled, dim=1, stable=True).indices
        below = p.gather(1, order).cumsum(1)
        removed = below <= 1.0 - rule.top_p
        removed = torch.cat([removed[:, :-1], torch.zeros_like(removed[:, :1])], 1)
        scaled = scaled.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -math.inf)
        p = torch.softmax(scaled, -1, dtype=torch.float64)
    if rule.min_p > 0.0:
        scaled = scaled.where(p >= rule.min_p * p.amax(1, keepdim=True), -math.inf)
    return torch.softmax(scaled, -1)


def draw_distinct(q: Tensor, columns: Tensor, uniforms: Tensor, enough: Tensor) -> Tensor:
    """int64 [w, k]: columns of q [w, S] in draw order, without replacement, then -1; of the first
    ``columns`` int64 [] only. uniforms float64 [w, k]; a row ends with its support, or once its
    draws hold more than the share enough [w] of the total.

    A draw is a point on the line [0, total) with the intervals of earlier draws cut out: with s_i
    and l_i their starts and lengths in the line's order, the point passes cut i where it is at
    least s_i - l_1 - ... - l_(i-1), a bound that rises with i; so each cut is asked by itself.
    """
    line = torch.cumsum(q, 1, dtype=torch.float64)
    total = line[:, -1]
    k = uniforms.shape[1]
    drawn = torch.full_like(uniforms, -1, dtype=torch.int64)
    starts, lengths = torch.full_like(uniforms, math.inf), torch.zeros_like(uniforms)
    taken, is_open = torch.zeros_like(total), total > 0
    for j in range(k):
        is_open = is_open & ~(taken > enough * total)
        point = uniforms[:, j] * (total - taken)
        elder = starts[:, None, :] < starts[:, :, None]
        before = lengths[:, None, :].where(elder, 0.0).sum(2)
        passed = point[:, None] >= starts - before
        point = point + lengths.where(passed, 0.0).sum(1)
        column = torch.searchsorted(line, point[:, None], right=True)
        column = torch.minimum(column, columns - 1)
        start = line.gather(1, (column - 1).clamp(min=0)).where(column > 0, 0.0)[:, 0]
        length = line.gather(1, column)[:, 0] - start
        repeated = (drawn == column).any(1)
        is_open = is_open & ~repeated & (length > 0)  # else nothing is left but rounding
        at = torch.arange(k, device=q.device) == j
        here = is_open[:, None] & at
        drawn = torch.where(here, column, drawn)
        starts = torch.where(here, start[:, None], starts)
        lengths = torch.where(here, length[:, None], lengths)
        taken = taken + length.where(is_open, 0.0)
    return drawn


def draw_independent(q: Tensor, uniforms: Tensor) -> Tensor:
    """int64 [w, k]: independent columns of q [w, S], -1 where a row has no mass. A point that
    rounds up to the total falls on the last column of any weight."""
    line = torch.cumsum(q, 1, dtype=torch.float64)
    total = line[:, -1:]
    last = torch.searchsorted(line, total.contiguous())
    column = torch.searchsorted(line, uniforms * total, right=True)
    return torch.minimum(column, last).where(total > 0, -1)


def law_of(candidates: Candidates, live: Tensor, rule: DrawRule) -> tuple[Law, Tensor, Tensor]:
    """(what is drawn from, mass float64 [w] of the shortlist, bad bool [] as in ``Draws``)."""
    log_probs, ids = candidates.log_probs, candidates.all_ids
    assert log_probs is not None
    assert ids is not None
    real = ids >= 0
    log_probs = log_probs.masked_fill(~real, -math.inf)
    q = filtered_softmax(log_probs, rule)
    sound = (log_probs.isfinite() | ~real).all(1)
    bad = (live & ~sound).any()
    mass = (candidates.log_q[:, 0].double() - log_probs.amax(1).double()).exp().clamp(max=1.0)
    return Law(ids, q), mass, bad


def draw_children(
    candidates: Candidates,
    live: Tensor,
    uniforms: Uniforms,
    k: int,
    least: Tensor,
    rule: DrawRule,
) -> tuple[Draws, Uniforms, Law]:
    """Up to ``k`` draws without replacement below each live row (bool [w]); a row ends once less
    than least [w] is left of its estimated probability 1."""
    law, mass, bad = law_of(candidates, live, rule)
    given, uniforms = uniforms.take(live, k, k)
    enough = torch.where(mass > 0, (1 - least) / mass, 1.0)
    columns = draw_distinct(law.q, (law.ids >= 0).sum(), given, enough)
    columns = columns.where(live[:, None], -1)
    there, at = columns >= 0, columns.clamp(min=0)
    tokens = law.ids[at].where(there, -1)
    chances = law.q.gather(1, at).double().where(there, 0.0)
    return Draws(columns, tokens, chances, mass, bad), uniforms, law
