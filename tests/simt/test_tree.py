"""kv_commit.cu on the SIMT machine against the reference op."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from dynaspec_cli.ops import reference_tree as reference

from .machine import Machine


class CacheStruct(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
    ]


@pytest.mark.parametrize("row_bytes", [32, 40, 6])
def test_kv_commit(machine: Machine, row_bytes: int) -> None:
    rng = np.random.default_rng(row_bytes)
    total, base = 30, 7
    rows = np.array([0, 1, 4, 5, 9, 15, -1, -1], np.int64)
    arrays = [
        rng.integers(0, 256, (total, row_bytes + extra)).astype(np.uint8)
        for extra in (0, row_bytes, 0)
    ]
    caches = [machine.mutable(a, "cache") for a in arrays]

    structs = (CacheStruct * 3)(
        *[CacheStruct(c.pointer.value, total, c.array.shape[1]) for c in caches]
    )
    given = machine.constant(rows, "rows")
    start = machine.constant(np.array([base], np.int64), "base")
    assert machine.launch("dynaspec_kv_commit", structs, 3, start, given, rows.size, None) == 0
    for before, cache in zip(arrays, caches, strict=True):
        expected = torch.from_numpy(before.copy())
        reference.kv_commit([expected], torch.tensor([base]), torch.from_numpy(rows[rows >= 0]))
        np.testing.assert_array_equal(cache.array, expected.numpy())


@pytest.mark.parametrize("base", [15, 25, -3])
@pytest.mark.parametrize("rows", [[0] * 10, [0, 2, 1, 3], [3, 3, 3, 9, 9]])
def test_kv_commit_of_a_path_that_does_not_fit_stays_within_the_cache(
    machine: Machine, rows: list[int], base: int
) -> None:
    """The machine reports every access outside the buffer."""
    cache = machine.mutable(np.arange(20 * 32, dtype=np.uint8).reshape(20, 32), "cache")
    given = machine.constant(np.array(rows, np.int64), "rows")
    start = machine.constant(np.array([base], np.int64), "base")

    structs = (CacheStruct * 1)(CacheStruct(cache.pointer.value, 20, 32))
    assert machine.launch("dynaspec_kv_commit", structs, 1, start, given, len(rows), None) == 0
