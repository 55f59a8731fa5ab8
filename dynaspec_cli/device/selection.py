"""The rows of a draft step's shortlist as a list with a count: ``ops.shortlist_union`` in fixed
shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.device.select import compacted


class Selection(NamedTuple):
    """``rows`` int64 [capacity] of the head, ascending, then -1; ``size`` int64 [] of them.
    ``first``: they are the head's first, all of them, whatever the data."""

    rows: Tensor
    size: Tensor
    first: bool = False


class Clusters(NamedTuple):
    """``starts`` and ``ends`` int64 [M]: each cluster's rows; ``of_row`` int64 [R]: the cluster of
    a row, M for none."""

    starts: Tensor
    ends: Tensor
    of_row: Tensor


def clusters_of(offsets: Tensor, num_rows: int) -> Clusters:
    """From the borders int [M + 1] of consecutive clusters; rows before the first have none."""
    offsets = offsets.long()
    count = offsets.numel() - 1
    rows = torch.arange(num_rows, device=offsets.device)
    found = torch.searchsorted(offsets, rows, right=True) - 1
    return Clusters(
        offsets[:-1], offsets[1:], torch.where(found < 0, count, found.clamp(max=count))
    )


def selected(taken: Tensor, capacity: int) -> Selection:
    """The rows that bool [R] names, at most ``capacity``."""
    rows = torch.arange(taken.shape[0], device=taken.device)
    return Selection(compacted(taken, rows, capacity), taken.sum().clamp(max=capacity))


def with_clusters(
    taken: Tensor, scores: Tensor, live: Tensor, clusters: Clusters, budget: int
) -> Tensor:
    """``taken`` bool [R], and whole clusters by score until ``budget`` rows are reached: scores
    float32 [w, M], of which the best of the ``live`` rows counts; ties go to the lower cluster. A
    cluster whose rows not yet taken would exceed the budget ends the filling."""
    best = scores.where(live[:, None], -torch.inf).amax(0)
    before = torch.cat([torch.zeros_like(clusters.starts[:1]), torch.cumsum(taken, 0)])
    held = before[clusters.ends] - before[clusters.starts]
    new = clusters.ends - clusters.starts - held
    order = torch.sort(best, descending=True, stable=True).indices
    fits = before[-1] + torch.cumsum(new[order], 0) <= budget
    chosen = torch.zeros_like(torch.cat([fits, fits[:1]])).scatter(0, order, fits)
    return taken | chosen[clusters.of_row]
