"""The part of a shortlist that lies in one rank's slice of the head's rows, of a size that does
not depend on the rank: a tensor-parallel step is one program.

Rows are local: row 0 is the slice's first. Where a rank has fewer than the size asks for, one of
its own rows stands in twice, which changes no maximum.
"""

from __future__ import annotations

import torch
from torch import Tensor


def borders(rows: int, ranks: int, shard: int) -> list[tuple[int, int]]:
    """[begin, end) of every rank's slice: ``shard`` rows a rank, the last ones less or none."""
    return [(min(rank * shard, rows), min((rank + 1) * shard, rows)) for rank in range(ranks)]


def slice_core(core: Tensor, slices: list[tuple[int, int]], rank: int) -> Tensor:
    """Local rows int64 [S] of ``core`` in the slice of ``rank``; S is the largest of all ranks."""
    inside = [core[(core >= begin) & (core < end)].long() for begin, end in slices]
    size = max(rows.numel() for rows in inside)
    mine = inside[rank] - slices[rank][0]
    filler = mine[:1] if mine.numel() else core.new_zeros(1, dtype=torch.int64)
    return torch.cat([mine, filler.expand(size - mine.numel())])


def slice_clusters(
    clusters: Tensor, router: Tensor, bias: Tensor, slices: list[tuple[int, int]], rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(local rows int64 [M', P'], router [M', d], bias [M']) of ``clusters`` int [M, P], filled up
    with -1, in the slice of ``rank``; M' is the largest of all ranks, P' is P over their number,
    rounded up. A cluster with more than P' rows in a slice becomes several there, which the same
    router row finds.

    A rank that takes as many times more clusters as there are ranks scores as many rows as one
    process alone.
    """
    ranks = len(slices)
    size = -(-clusters.shape[1] // ranks)
    count = max(int(_parts(clusters, begin, end, size).sum()) for begin, end in slices)
    begin, end = slices[rank]
    parts = _parts(clusters, begin, end, size)
    owner = torch.arange(len(clusters), device=clusters.device).repeat_interleave(parts)
    rows = clusters.new_full((max(count, 1), size), -1, dtype=torch.int64)
    at = 0
    for cluster, pieces in zip(clusters.long(), parts.tolist(), strict=True):
        mine = cluster[(cluster >= begin) & (cluster < end)] - begin
        for piece in range(pieces):
            part = mine[piece * size : (piece + 1) * size]
            rows[at, : part.numel()] = part
            at += 1
    # Stand-ins: a cluster's first row for its missing ones; for a missing cluster the slice's
    # first row, and a bias with which no router takes it before a real one.
    rows = torch.where(rows < 0, rows[:, :1].clamp_min(0), rows)
    missing = len(rows) - at
    lowest = torch.finfo(bias.dtype).min
    return (
        rows,
        torch.cat([router[owner], router.new_zeros(missing, router.shape[1])]),
        torch.cat([bias[owner], bias.new_full((missing,), lowest)]),
    )


def _parts(clusters: Tensor, begin: int, end: int, size: int) -> Tensor:
    """Pieces of ``size`` rows that each cluster has in the slice, int64 [M]."""
    inside = ((clusters >= begin) & (clusters < end)).sum(1)
    return (inside + size - 1) // size
