"""The SIMT machine finds faults: each faulty kernel is reported, its sound twin is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import machine as simt

FAULTS = {
    # name: (number, threads, blocks, expected finding or None)
    "missing barrier between warps": (0, 64, 1, "shared memory"),
    "a warp barrier is enough for one warp": (0, 32, 1, None),
    "a shuffle orders no memory": (1, 32, 1, "race in shared memory"),
    "write after read": (2, 64, 1, "race in shared memory"),
    "two blocks write one place": (3, 32, 2, "race in out"),
    "one block alone may": (3, 32, 1, None),
    "unwritten output": (5, 32, 1, "read of unwritten out"),
    "past the end": (6, 64, 1, "outside every buffer"),
    "unaligned vector": (7, 32, 1, "not aligned"),
    "divergent barrier": (8, 64, 1, "deadlock"),
    "asynchronous copy read too early": (9, 32, 1, "read of unwritten shared memory"),
    "asynchronous copy waited for": (10, 32, 1, None),
    "write to an input": (11, 32, 1, "write to the constant input in"),
}


@pytest.fixture(scope="module")
def faulty(simt_folder: Path) -> simt.Machine:
    return simt.Machine(simt.build(simt_folder, [simt.HERE / "faulty_kernels.cu"]))


def run(machine: simt.Machine, number: int, threads: int, blocks: int) -> tuple[int, simt.Buffer]:
    out = machine.output((64,), np.int32, "out")
    given = machine.constant(np.arange(256, dtype=np.int32), "in")
    call = machine.library.simt_faulty
    status = call(*map(simt._argument, (number, out, given, threads, blocks)))
    return status, out


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_whatever_the_order(faulty: simt.Machine, name: str) -> None:
    number, threads, blocks, expected = FAULTS[name]
    for seed in range(5):
        faulty.reset(seed)
        status, _ = run(faulty, number, threads, blocks)
        assert status == 0
        if expected is None:
            assert faulty.findings() == ""
        else:
            assert expected in faulty.findings()


def test_atomics_of_two_blocks_are_no_race(faulty: simt.Machine) -> None:
    faulty.reset(3)
    counter = faulty.mutable(np.zeros(1, np.int32), "counter")
    faulty.library.simt_faulty(*map(simt._argument, (4, counter, None, 64, 3)))
    assert faulty.findings() == ""
    assert counter.array[0] == 192


def test_too_much_shared_memory_is_refused(faulty: simt.Machine) -> None:
    faulty.reset(1)
    status, _ = run(faulty, 99, 32, 1)
    assert status != 0
