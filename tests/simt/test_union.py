"""shortlist_union.cu on the SIMT machine against the reference op."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynaspec_cli.ops import reference

from .machine import Machine


def union(
    machine: Machine,
    scores: np.ndarray,
    offsets: np.ndarray,
    extra: np.ndarray,
    core: int,
    budget: int,
    rows: int,
):
    n, clusters = scores.shape
    capacity = machine.size("dynaspec_union_capacity", rows, clusters, extra.size, core)
    blocks = machine.output((capacity, 2), np.int32, "blocks")
    count, size = machine.output((1,), np.int32, "count"), machine.output((1,), np.int64, "size")
    status = machine.launch(
        "dynaspec_shortlist_union",
        machine.constant(scores, "scores"),
        n,
        clusters,
        machine.constant(offsets, "offsets"),
        machine.constant(extra, "extra rows"),
        extra.size,
        core,
        rows,
        budget,
        blocks,
        capacity,
        count,
        size,
        machine.workspace(machine.size("dynaspec_union_workspace", rows, clusters)),
        None,
    )
    assert status == 0
    used = int(count.array[0])
    assert (blocks.array[used:] == rows).all()
    return blocks.array[:used].copy(), int(size.array[0])


def random_case(seed: int):
    rng = np.random.default_rng(seed)
    rows = int(rng.choice([1, 31, 32, 33, 100, 1000, 4097]))
    clusters = int(min(rng.choice([0, 1, 2, 7, 40, 300]), rows))
    borders = (
        np.sort(rng.choice(np.arange(1, rows), max(clusters - 1, 0), replace=False))
        if clusters > 1
        else []
    )
    offsets = np.array([0, *borders, rows] if clusters else [0], np.int32)
    n = int(rng.choice([0, 1, 2, 5]))
    # Few distinct values, so that ties at the budget's edge are common; both zeros, infinities.
    scores = rng.choice(
        np.array([-np.inf, -2, -1e-30, -0.0, 0.0, 0.5, 3, np.inf], np.float32), (n, clusters)
    )
    if rng.random() < 0.5:
        scores = rng.standard_normal((n, clusters)).astype(np.float32)
    extra = rng.integers(0, rows, rng.choice([0, 1, 17])).astype(np.int32)
    core = int(rng.choice([0, min(rows, 13), rows // 3]))
    budget = int(rng.choice([0, rows // 3, rows // 2, rows]))
    return scores.astype(np.float32), offsets, extra, core, budget, rows


@pytest.mark.parametrize("seed", range(24))
def test_union_equals_reference(machine: Machine, seed: int) -> None:
    scores, offsets, extra, core, budget, rows = random_case(seed)
    machine.reset(seed + 1)
    blocks, size = union(machine, scores, offsets, extra, core, budget, rows)
    expected, expected_size = reference.shortlist_union(
        torch.from_numpy(scores), torch.from_numpy(offsets), torch.from_numpy(extra), core, budget
    )
    assert size == int(expected_size)
    np.testing.assert_array_equal(blocks, expected.numpy().reshape(-1, 2))


def test_extra_rows_outside_the_head_are_padding(machine: Machine) -> None:
    scores, offsets = np.zeros((0, 0), np.float32), np.zeros(1, np.int32)
    blocks, size = union(
        machine, scores, offsets, np.array([-1, 5, 64, -7, 6], np.int32), 0, 10, 64
    )
    assert size == 2
    assert blocks.tolist() == [[5, 7]]


def test_equal_scores_fill_in_cluster_order(machine: Machine) -> None:
    offsets = np.arange(0, 70, 10, dtype=np.int32)
    blocks, size = union(
        machine, np.zeros((3, 6), np.float32), offsets, np.zeros(0, np.int32), 5, 30, 60
    )
    assert size == 30
    assert blocks.tolist() == [[0, 30]]


def test_a_nan_score_comes_first_as_in_the_reference(machine: Machine) -> None:
    scores = np.array([[0.0, np.nan, 5.0, np.inf]], np.float32)
    offsets = np.arange(0, 50, 10, dtype=np.int32)
    blocks, _ = union(machine, scores, offsets, np.zeros(0, np.int32), 0, 20, 40)
    assert blocks.tolist() == [[10, 20], [30, 40]]
