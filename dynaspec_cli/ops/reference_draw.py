"""Plain PyTorch references of the ops that draw a tree's children and verify them.

All randomness arrives as uniforms in [0, 1), so a result is a function of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CERTAIN = math.inf
"""Chance of a child that is accepted whatever the coin says."""


def draw_index(weights: Tensor, u: float) -> int:
    """An index drawn in proportion to weights [V] >= 0 (float32 or float64): the first whose
    cumulative sum *exceeds* u times the total, so its weight is positive. -1 where there is no
    mass."""
    cumulative = torch.cumsum(weights, 0, dtype=torch.float64)
    total = float(cumulative[-1])
    if not total > 0:
        return -1
    point = torch.tensor(u * total, dtype=torch.float64, device=weights.device)
    index = int(torch.searchsorted(cumulative, point, right=True))
    if index == weights.numel():  # u * total rounded up to the total
        index = int(weights.nonzero()[-1])
    return index


def draw_rows(
    weights: Tensor,
    uniforms: Tensor,
    counts: Sequence[int],
    enough: Sequence[float] | None,
    replacement: bool,
) -> Tensor:
    """int64 [w, k]: for row i of weights [w, S] up to counts[i] columns in draw order, -1 behind
    the last; uniforms float64 [w, k].

    With replacement the draws are independent. Without, a draw is a point on the line [0, total)
    with the intervals of earlier draws cut out; a row ends with its support, or once its draws hold
    more than the share enough[i] of the total. (Racing exponentials in float32 would be shorter,
    but its smallest times lie on a grid of 2^-24, which distorts the tail of a large vocabulary.)
    """
    cumulative = torch.cumsum(weights, 1, dtype=torch.float64)
    drawn = torch.full(uniforms.shape, -1, dtype=torch.int64)
    for i, line in enumerate(cumulative):
        columns = (_independent if replacement else _distinct)(
            line, uniforms[i, : counts[i]], math.inf if enough is None else enough[i]
        )
        drawn[i, : len(columns)] = torch.tensor(columns, dtype=torch.int64)
    return drawn


def _independent(line: Tensor, uniforms: Tensor, enough: float) -> list[int]:
    """A point that rounds up to the total falls on the last column of any weight."""
    if not float(line[-1]) > 0:
        return []
    last = int(torch.searchsorted(line, line[-1]))
    points = uniforms.to(line.device) * line[-1]
    return torch.searchsorted(line, points, right=True).clamp_(max=last).tolist()


def _distinct(line: Tensor, uniforms: Tensor, enough: float) -> list[int]:
    total, taken = float(line[-1]), 0.0
    columns: list[int] = []
    cut: list[tuple[float, float]] = []  # (start, length), ascending
    for u in uniforms.tolist():
        if taken > enough * total or not total > 0:
            break
        point = u * (total - taken)
        for start, length in cut:
            if point < start:
                break
            point += length
        point = torch.tensor(point, dtype=torch.float64, device=line.device)
        column = min(int(torch.searchsorted(line, point, right=True)), line.numel() - 1)
        start = float(line[column - 1]) if column else 0.0
        length = float(line[column]) - start
        if column in columns or not length > 0:
            break  # nothing is left but rounding
        columns.append(column)
        taken += length
        cut = sorted([*cut, (start, length)])
    return columns


def filtered_softmax(
    logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> Tensor:
    """p [n, V] of logits [n, V]: temperature, top-k (ties with the k-th are kept), top-p (of tied
    tokens at the border the higher ids), min-p; transformers' order. Sums are float64."""
    scaled = logits if temperature == 1.0 else logits / temperature
    if not (top_k or top_p < 1.0 or min_p > 0.0):
        return torch.softmax(scaled, -1)
    p = torch.zeros_like(scaled)
    for row in range(scaled.shape[0]):
        ids, kept = _filtered(scaled[row], top_k, top_p, min_p)
        p[row, ids] = kept
    return p


def _filtered(row: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """(ids int64 [m] ascending, p [m]) of the tokens that the filters leave of scaled logits [V].

    Only tokens that can survive are sorted: top-k needs a partial selection, and top-p alone the
    few tokens that hold its mass.
    """
    if 0 < top_k < row.numel():
        ids = (row >= torch.topk(row, top_k).values[-1]).nonzero().squeeze(1)
        p = torch.softmax(row[ids], -1, dtype=torch.float64)
    elif top_p == 1.0 and min_p > 0.0:
        border = float(row.max()) + math.log(min_p)  # decided exactly below
        ids = (row >= border - 1e-3).nonzero().squeeze(1)
        p = torch.softmax(row[ids], -1, dtype=torch.float64)
    else:
        p = torch.softmax(row, -1, dtype=torch.float64)
        ids = _heavy(p, top_p)
        p = p[ids]
    if top_p < 1.0:
        order = torch.sort(row[ids], stable=True).indices
        # Summed from the least probable token of the vocabulary upwards; those left out come first.
        below = torch.cumsum(p[order], 0) + max(0.0, 1.0 - float(p.sum()))
        removed = below <= 1.0 - top_p
        removed[-1] = False
        keep = torch.sort(order[~removed]).values
        ids, p = ids[keep], p[keep]
    if min_p > 0.0:
        ids = ids[p >= min_p * p.max()]
    return ids, torch.softmax(row[ids], -1)


def _heavy(p: Tensor, top_p: float) -> Tensor:
    """Ids, ascending, of tokens that hold more than ``top_p`` of p float64 [V] together, none left
    out being more probable than one taken. All ids where no few tokens do."""
    floor = float(p.max())
    while top_p < 1.0 and floor > 1e-6 / p.numel():
        floor *= 2.0**-7
        ids = (p > floor).nonzero().squeeze(1)
        if float(p[ids].sum()) > top_p + 1e-9:
            return ids
    return torch.arange(p.numel(), device=p.device)


def draw_children(
    log_probs: Tensor,
    best: Tensor,
    ids: Tensor,
    uniforms: Tensor,
    counts: Sequence[int],
    least: Sequence[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    replacement: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draws of a draft step. log_probs float32 [w, S] over the tokens ids int64 [S]; best float32
    [w], each row's best score with the shortlist's mass in it, so that mass [w] = exp(best - max
    log_probs), at most 1; uniforms float64 [w, k]; a row ends after counts[i] draws, or once less
    than least[i] is left of its estimated probability 1.

    Returns (q float32 [w, S], the law of the draws: ``filtered_softmax``; columns int64 [w, k];
    tokens int64 [w, k]; chances float64 [w, k], q of each; mass float64 [w], NaN where a score is
    NaN or infinite); -1 and 0 behind a row's last draw.
    """
    q = filtered_softmax(log_probs, temperature, top_k, top_p, min_p)
    finite = log_probs.isfinite().all(1)
    q = q.where(finite[:, None], 0.0)  # a row without a law: no draws, and NaN for its mass
    mass = (best.double() - log_probs.amax(1).double()).exp().clamp(max=1.0)
    mass = mass.where(finite, math.nan)
    enough = [
        (1 - rest) / m if m > 0 else 1.0 for rest, m in zip(least, mass.tolist(), strict=True)
    ]
    columns = draw_rows(q, uniforms, counts, enough, replacement)
    there, at = columns >= 0, columns.clamp(min=0)
    tokens = ids[at].where(there, -1)
    return q, columns, tokens, q.gather(1, at).double().where(there, 0.0), mass


def sibling_chances(
    p: Tensor,
    tokens: Sequence[int],
    columns: Sequence[int],
    ids: Tensor,
    q: Tensor,
    replacement: bool,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The children ``tokens`` of a node in the order in which they are tried: the last
    ``len(columns)`` were drawn from q [S] over the distinct ids int64 [S], at these columns, the
    others are points. p [V] and q have any positive sum; float32 or float64. ``weight``: the
    probability that the node is to be passed (traversal verification); 1 where it was accepted
    before its children are tried.

    With R = p and D = q normalised and w the weight, child x is passed with min(1, w R(x) / D(x));
    else, with s the sum of max(w R - D, 0), R becomes this over s, w becomes s / (s + 1 - w), and
    without replacement D(x) = 0, D = norm(D). A point is a D that is 1 at x.

    Returns (chances float64 [m + 1]: that child j is passed, given that those before it were not,
    not capped at 1; ``CERTAIN`` where only rounding could reject it, NaN where q cannot have drawn
    it; last the w that is left for the node itself; residual [V], p's dtype, of any positive sum: R
    at the end).
    """
    points = tokens[: len(tokens) - len(columns)]
    chances = torch.zeros(len(tokens) + 1, dtype=torch.float64)
    residual = p.clone()
    whole = left = float(p.sum(dtype=torch.float64))
    possible = None
    for j, token in enumerate(points):
        chance = float(residual[token])
        share = chance / left if left > 0 else 0.0
        chances[j] = weight * share
        possible = j if chance > 0 else possible
        left -= chance
        residual[token] = 0
        weight = _rejected(weight, weight * (1 - share)) if weight < 1 else weight
    if possible is not None and left < 1e-9 * whole and not bool(residual.any()):
        if weight == 1:
            chances[possible] = CERTAIN
    elif columns:
        _try_draws(residual, tokens[len(points) :], columns, ids, q, replacement, weight, chances)
    else:
        chances[-1] = weight
    return chances, residual


def _rejected(weight: float, rest: float) -> float:
    """The weight once a part ``rest`` of weight * R is left by a rejected child."""
    return rest / (rest + (1 - weight)) if rest > 0 else 0.0


def _try_draws(
    residual: Tensor,
    tokens: Sequence[int],
    columns: Sequence[int],
    ids: Tensor,
    q: Tensor,
    replacement: bool,
    weight: float,
    chances: Tensor,
) -> None:
    """Fills the last of ``chances`` and updates ``residual``. R and D live on the shortlist, in
    float64; R outside it is p times a factor, whose sum is ``outside``."""
    r = residual[ids].double()
    residual[ids] = 0
    outside = float(residual.sum(dtype=torch.float64))
    factor = 1.0 / (float(r.sum()) + outside)
    r, outside = r * factor, outside * factor
    d = q.double() / q.sum(dtype=torch.float64)
    first, alive = len(chances) - 1 - len(tokens), True
    for j, (token, column) in enumerate(zip(tokens, columns, strict=True), start=first):
        drawable = int(ids[column]) == token and float(q[column]) > 0
        if not drawable or (alive and not float(d[column]) > 0):
            chances[j] = math.nan
            return
        if not alive:
            continue
        chances[j] = weight * float(r[column]) / float(d[column])
        r = (weight * r - d).clamp_(min=0)
        outside, factor = outside * weight, factor * weight
        total = float(r.sum()) + outside
        if weight == 1 and not total > 0:
            chances[j] = CERTAIN  # R = D up to rounding
            return
        weight = _rejected(weight, total)
        if weight == 0:
            return
        r, outside, factor = r / total, outside / total, factor / total
        if not replacement:
            d = d.clone()
            d[column] = 0
            mass = float(d.sum())
            alive = mass > 0
            d = d / mass if alive else d
    chances[-1] = weight
    residual[ids] = (r / factor).to(residual.dtype)
