"""Selection of rows: by hand, against a set of rows in plain Python, against the reference."""

from __future__ import annotations

import pytest
import torch
from head_cases import make_case

from dynaspec_cli import ops
from dynaspec_cli.ops import reference

OFFSETS = torch.tensor([0, 4, 10, 12, 20], dtype=torch.int32)
NONE = torch.empty(0, dtype=torch.int32)


def select(
    scores: list[list[float]], extra: list[int], core: int, budget: int
) -> tuple[list[list[int]], int]:
    matrix = torch.tensor(scores, dtype=torch.float32).reshape(len(scores), -1)
    extras = torch.tensor(extra, dtype=torch.int32)
    blocks, size = ops.shortlist_union(matrix, OFFSETS, extras, core, budget)
    assert blocks.dtype == torch.int32
    assert size.dtype == torch.int64
    return blocks.tolist(), int(size)


def test_by_hand() -> None:
    # cluster 2 (rows 10, 11) first, then 0 (0..3); cluster 3 would exceed the budget: the end
    assert select([[1.0, -5.0, 2.0, 0.5]], [], 0, 6) == ([[0, 4], [10, 12]], 6)
    # the maximum over the frontier's rows counts
    assert select([[0, 0, 0, 9.0], [0, 8.0, 0, 0]], [], 0, 14) == ([[4, 10], [12, 20]], 14)
    # ties go to the lower cluster
    assert select([[1.0, 1.0, 1.0, 1.0]], [], 0, 10) == ([[0, 10]], 10)
    # rows already taken do not count twice: cluster 1 costs 4, not 6
    assert select([[0, 1.0, -1.0, -1.0]], [5, 7, 7], 0, 6) == ([[4, 10]], 6)
    # core and extras stay beyond the budget; adjacent ranges are merged
    assert select([[1.0, 0, 0, 0]], [2, 9, 3], 2, 1) == ([[0, 4], [9, 10]], 5)
    # a cluster that does not fit ends the filling, also if a later one would fit
    assert select([[1.0, 0, 0.5, 2.0]], [], 0, 7) == ([], 0)


def test_without_clusters() -> None:
    extra = torch.tensor([70, 3], dtype=torch.int32)
    blocks, size = ops.shortlist_union(torch.empty(0, 0), NONE, extra, 2, 0)
    assert blocks.tolist() == [[0, 2], [3, 4], [70, 71]]
    assert int(size) == 4
    blocks, size = ops.shortlist_union(torch.empty(0, 4), OFFSETS, NONE, 0, 100)
    assert blocks.shape == (0, 2)
    assert int(size) == 0


@pytest.mark.parametrize("seed", range(20))
def test_against_the_reference(seed: int) -> None:
    case = make_case(
        seed,
        n=1 + seed % 5,
        d=1,
        vocab=64 * (1 + seed % 7) + seed,
        dtype=torch.float32,
        clusters=1 + seed * 3,
        extra=seed * 2,
        core=seed * 5,
        budget=seed * 20,
    )
    blocks, size = ops.shortlist_union(*case.union)
    want, want_size = reference.shortlist_union(*case.union)
    assert torch.equal(blocks, want)
    assert int(size) == int(want_size) == int((blocks[:, 1] - blocks[:, 0]).sum())
