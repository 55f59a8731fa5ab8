"""head_*.cu on the SIMT machine against float64 sums: odd shapes, weight types, ties, padding."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dynaspec_cli.ops import reference

from .machine import BFLOAT16, FLOAT16, FLOAT32, INT8, Machine

DTYPES = {
    FLOAT32: torch.float32,
    BFLOAT16: torch.bfloat16,
    FLOAT16: torch.float16,
    INT8: torch.int8,
}


class HeadStruct(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("row_ids", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("dtype", ctypes.c_int),
    ]


@dataclass
class Case:
    weight: torch.Tensor
    scale: torch.Tensor
    row_ids: torch.Tensor
    hidden: torch.Tensor
    blocks: np.ndarray
    dtype: int
    temperature: float = 1.0

    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(log_q, ids, logsumexp) in row order: inputs rounded as the kernel does, float64 sums."""
        x = self.hidden.float()
        if self.dtype == INT8:
            q, scale = reference.quantize_rows(x)
            x = q.double() * scale.double()[:, None]
        else:
            x = x.to(DTYPES[self.dtype]).double()
        rows = np.concatenate(
            [np.arange(lo, hi) for lo, hi in self.blocks] or [np.zeros(0, int)]
        ).astype(int)
        logits = x @ self.weight.double()[rows].T
        if self.scale.numel():
            logits = logits * self.scale.double()[rows]
        logits = logits / self.temperature
        lse = torch.logsumexp(logits, -1)
        ids = self.row_ids.numpy()[rows] if self.row_ids.numel() else rows
        return (logits - lse[:, None]).numpy(), ids, lse.numpy()


def make_case(
    seed: int,
    dtype: int,
    n: int,
    dim: int,
    rows: int,
    blocks: list[tuple[int, int]],
    ids: bool = True,
) -> Case:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, dim, generator=g)
    scale = torch.zeros(0)
    if dtype == INT8:
        weight, scale = (
            torch.randint(-127, 128, (rows, dim), generator=g),
            torch.rand(rows, generator=g) * 0.02 + 0.001,
        )
    row_ids = (
        torch.randperm(rows, generator=g).to(torch.int32)
        if ids
        else torch.zeros(0, dtype=torch.int32)
    )
    hidden = torch.randn(n, dim, generator=g)
    hidden = hidden.to([torch.float32, torch.bfloat16, torch.float16][seed % 3])
    return Case(
        weight.to(DTYPES[dtype]),
        scale,
        row_ids,
        hidden,
        np.array(blocks, np.int32).reshape(-1, 2),
        dtype,
    )


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    return (
        tensor.contiguous().view(torch.uint8).numpy() if tensor.numel() else np.zeros(1, np.uint8)
    )


def register(
    machine: Machine, case: Case, misalign: int = 0
) -> tuple[HeadStruct, ctypes.c_void_p, int]:
    raw = as_bytes(case.weight).reshape(-1)
    weight = (
        machine.constant(np.concatenate([np.zeros(misalign, np.uint8), raw]), "head").value
        + misalign
    )
    head = HeadStruct(
        weight,
        machine.constant(case.scale.numpy(), "scale").value if case.scale.numel() else None,
        machine.constant(case.row_ids.numpy(), "row ids").value if case.row_ids.numel() else None,
        case.weight.shape[0],
        case.weight.shape[1],
        case.dtype,
    )
    hidden = machine.constant(as_bytes(case.hidden), "hidden")
    return head, hidden, next(code for code, dtype in DTYPES.items() if dtype == case.hidden.dtype)


def topk(machine: Machine, case: Case, k: int, grid: int = 3, misalign: int = 0, padding: int = 2):
    head, hidden, hidden_dtype = register(machine, case, misalign)
    n, rows = case.hidden.shape[0], case.weight.shape[0]
    blocks = np.concatenate([case.blocks, np.full((padding, 2), rows, np.int32)])
    log_q, ids = (
        machine.output((n, k), np.float32, "log_q"),
        machine.output((n, k), np.int64, "ids"),
    )
    lse = machine.output((n,), np.float32, "logsumexp")
    reference_to = ctypes.byref(head)
    workspace = machine.size("dynaspec_head_workspace", reference_to, n, len(blocks), k, grid)
    status = machine.launch(
        "dynaspec_shortlist_topk",
        reference_to,
        hidden,
        ctypes.c_int(hidden_dtype),
        n,
        machine.constant(blocks, "blocks"),
        len(blocks),
        k,
        case.temperature,
        grid,
        log_q,
        ids,
        lse,
        machine.workspace(workspace),
        None,
    )
    assert status == 0
    return log_q.array.copy(), ids.array.copy(), lse.array.copy()


def log_probs(machine: Machine, case: Case, width: int, grid: int = 3):
    head, hidden, hidden_dtype = register(machine, case)
    n = case.hidden.shape[0]
    log_q, ids = (
        machine.output((n, width), np.float32, "log_q"),
        machine.output((width,), np.int64, "ids"),
    )
    lse = machine.output((n,), np.float32, "logsumexp")
    reference_to = ctypes.byref(head)
    workspace = machine.size("dynaspec_head_workspace", reference_to, n, len(case.blocks), 0, grid)
    status = machine.launch(
        "dynaspec_shortlist_log_probs",
        reference_to,
        hidden,
        ctypes.c_int(hidden_dtype),
        n,
        machine.constant(case.blocks, "blocks"),
        len(case.blocks),
        width,
        case.temperature,
        grid,
        log_q,
        ids,
        lse,
        machine.workspace(workspace),
        None,
    )
    assert status == 0
    return log_q.array.copy(), ids.array.copy(), lse.array.copy()


def check_topk(
    case: Case, k: int, got: tuple[np.ndarray, np.ndarray, np.ndarray], tolerance: float = 2e-5
) -> None:
    log_q, ids, lse = got
    expected, all_ids, expected_lse = case.expected()
    size = expected.shape[1]
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(lse, expected_lse, atol=tolerance * scale, rtol=0)
    kept = min(k, size)
    best = -np.sort(-expected, axis=1)[:, :kept]
    np.testing.assert_allclose(log_q[:, :kept], best, atol=tolerance * scale, rtol=0)
    place = {int(token): i for i, token in enumerate(all_ids)}
    for i in range(len(log_q)):
        found = [place[int(t)] for t in ids[i, :kept]]
        assert len(set(found)) == kept
        np.testing.assert_allclose(
            expected[i, found], log_q[i, :kept], atol=tolerance * scale, rtol=0
        )
    assert (ids[:, kept:] == -1).all()
    assert np.isneginf(log_q[:, kept:]).all()


SHAPES = [
    # n, dim, rows, blocks, k
    (1, 64, 64, [(0, 64)], 1),
    (1, 8, 1, [(0, 1)], 3),
    (3, 72, 200, [(0, 63), (64, 65), (70, 198)], 10),
    (5, 7, 130, [(1, 130)], 64),
    (16, 40, 300, [(3, 19), (20, 36), (255, 300)], 33),
    (17, 136, 150, [(10, 140)], 8),
    (32, 16, 90, [(0, 17), (89, 90)], 4),
    (2, 200, 500, [(0, 500)], 64),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_topk(machine: Machine, shape: int, dtype: int) -> None:
    n, dim, rows, blocks, k = SHAPES[shape]
    case = make_case(10 * shape + dtype, dtype, n, dim, rows, blocks, ids=shape % 3 != 2)
    case.temperature = [1.0, 0.7, 2.5][shape % 3]
    machine.reset(shape + 1)
    check_topk(case, k, topk(machine, case, k, grid=1 + shape % 4))


@pytest.mark.parametrize("n", [5, 17, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probs(machine: Machine, dtype: int, n: int) -> None:
    case = make_case(dtype, dtype, n, 72, 400, [(2, 100), (101, 102), (200, 333)])
    case.temperature = 1.5
    log_q, ids, lse = log_probs(machine, case, 240)
    expected, expected_ids, expected_lse = case.expected()
    size = expected.shape[1]
    assert size == 232
    np.testing.assert_array_equal(ids, [*expected_ids, *[-1] * 8])
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(log_q[:, :size], expected, atol=2e-5 * scale, rtol=0)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5 * scale, rtol=0)
    assert np.isneginf(log_q[:, size:]).all()


def test_reference_op_agrees(machine: Machine) -> None:
    """The binding oracle itself, not only this file's float64 one."""
    case = make_case(7, BFLOAT16, 4, 64, 256, [(0, 40), (64, 256)])
    got = topk(machine, case, 12)
    empty = torch.zeros(0)
    log_q, ids, lse = reference.shortlist_topk(
        case.hidden, case.weight, empty, case.row_ids, torch.from_numpy(case.blocks), 12, 1.0
    )
    np.testing.assert_array_equal(got[1], ids.numpy())
    np.testing.assert_allclose(got[0], log_q.numpy(), atol=1e-4)
    np.testing.assert_allclose(got[2], lse.numpy(), atol=1e-4)


def test_exact_ties_go_to_the_lower_row(machine: Machine) -> None:
    case = make_case(2, FLOAT32, 2, 16, 300, [(5, 80), (90, 300)], ids=False)
    case.weight[:] = case.weight[0]
    case.weight[200] *= 0.5 if float(case.hidden[0].float() @ case.weight[0]) > 0 else 2.0
    _, ids, _ = topk(machine, case, 64, grid=4)
    expected = [r for r in [*range(5, 80), *range(90, 300)] if r != 200][:64]
    assert ids[0].tolist() == expected


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_a_row_does_not_depend_on_the_rows_beside_it(machine: Machine, dtype: int) -> None:
    case = make_case(4, dtype, 20, 72, 200, [(0, 190)])
    together = topk(machine, case, 5)
    for i in (0, 7, 19):
        machine.reset(i + 9)
        alone = Case(
            case.weight, case.scale, case.row_ids, case.hidden[i : i + 1], case.blocks, dtype
        )
        for a, b in zip(topk(machine, alone, 5), together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])


def test_more_thread_blocks_than_a_merge_takes_at_once(machine: Machine) -> None:
    case = make_case(9, FLOAT32, 2, 8, 5300, [(0, 2600), (2700, 5300)])
    check_topk(case, 5, topk(machine, case, 5, grid=80))


def test_no_rows_selected(machine: Machine) -> None:
    case = make_case(1, BFLOAT16, 2, 64, 70, [])
    log_q, ids, lse = topk(machine, case, 3)
    assert np.isneginf(log_q).all()
    assert (ids == -1).all()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32, INT8])
def test_a_head_that_is_not_aligned_is_loaded_by_elements(machine: Machine, dtype: int) -> None:
    case = make_case(5, dtype, 3, 64, 130, [(0, 130)])
    check_topk(case, 6, topk(machine, case, 6, misalign=4))


def test_extreme_logits_neither_overflow_nor_vanish(machine: Machine) -> None:
    case = make_case(6, FLOAT32, 2, 8, 128, [(0, 128)])
    case.weight *= 3000
    check_topk(case, 5, topk(machine, case, 5))
    machine.reset(2)
    case.weight[:] = 0
    check_topk(case, 5, topk(machine, case, 5))


def test_a_nan_is_seen_in_the_result(machine: Machine) -> None:
    case = make_case(8, FLOAT32, 2, 8, 128, [(0, 128)])
    case.hidden[1, 3] = float("nan")
    log_q, _, lse = topk(machine, case, 5)
    assert np.isfinite(lse[0])
    assert np.isnan(lse[1])
    assert np.isnan(log_q[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [8, 32])
def test_topk_real_widths(machine: Machine, dtype: int, n: int) -> None:
    case = make_case(n, dtype, n, 640, 3000, [(0, 500), (700, 1300), (1301, 2990)])
    check_topk(case, 10, topk(machine, case, 10, grid=7), tolerance=1e-4)
