"""The CUDA bindings: arguments taken, outputs made, launchers called, as torch sees it.

CPU tensors stand in for CUDA ones (bindings.cpp). The accesses of the kernels are checked in the
other files; here results are compared with the references.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynaspec_cli.ops import reference

from . import machine as simt

EMPTY = torch.empty(0)
IDENTITY = torch.empty(0, dtype=torch.int32)


@pytest.fixture(scope="module")
def ops(simt_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.ops.load_library(simt.build_bindings(tmp_path_factory.mktemp("bindings"), simt_library))
    return torch.ops.dynaspec_simt


@pytest.fixture(autouse=True)
def generator(machine: simt.Machine) -> torch.Generator:
    return torch.Generator().manual_seed(3)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


def weight(rows: int, dim: int, dtype: torch.dtype, generator: torch.Generator) -> Any:
    made = torch.randn(rows, dim, generator=generator) / dim**0.5
    return reference.quantize_rows(made) if dtype == torch.int8 else (made.to(dtype), EMPTY)


DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_head(ops: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    head, scale = weight(96, 64, dtype, generator)
    hidden = torch.randn(35, 64, generator=generator)  # more rows than a launch takes
    hidden = hidden.bfloat16() if dtype == torch.bfloat16 else hidden
    row_ids = torch.randperm(96, generator=generator).to(torch.int32)
    offsets = torch.tensor([0, 30, 60, 96], dtype=torch.int32)
    scores = torch.randn(2, 3, generator=generator)
    extra = torch.tensor([40, 95], dtype=torch.int32)
    dense, union = (hidden, head, scale, row_ids), (scores, offsets, extra, 4, 70)
    blocks, size = reference.shortlist_union(*union)
    want = reference.shortlist_topk(*dense, blocks, 5, 0.8)

    got_blocks, got_size = ops.shortlist_union(*union)
    used = got_blocks[got_blocks[:, 1] > got_blocks[:, 0]]
    assert torch.equal(used, blocks)
    assert int(got_size) == int(size)
    for log_q, ids, lse in (
        ops.shortlist_topk(*dense, blocks, 5, 0.8),
        ops.draft_head(*dense, *union, 5, 0.8)[:3],
    ):
        close(log_q, want[0])
        close(lse, want[2])
        # Ties within rounding may change places.
        assert (ids == want[1]).float().mean() > 0.95

    log_p, ids, lse = reference.shortlist_log_probs(*dense, blocks, 0.8)
    exact = ops.shortlist_log_probs(*dense, blocks, 0.8)
    close(exact[0], log_p)
    assert torch.equal(exact[1], ids)
    close(exact[2], lse)
    padded = ops.shortlist_log_probs_padded(*dense, got_blocks, int(size) + 3, 0.8)
    close(padded[0][:, : int(size)], log_p)
    assert bool((padded[0][:, int(size) :] == -torch.inf).all())
    assert padded[1][int(size) :].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_kv_commit(ops: Any, dtype: torch.dtype) -> None:
    caches = [torch.arange(9 * 6).reshape(9, 2, 3).to(dtype) for _ in range(2)]
    wanted = caches[0].clone()
    wanted[[3, 4]] = wanted[[4, 7]]
    ops.kv_commit([*caches, torch.empty(9, 0)], torch.tensor([3]), torch.tensor([1, 4, -1]))
    for cache in caches:
        assert torch.equal(cache[:5], wanted[:5])


def test_bad_input_is_named(ops: Any) -> None:
    x, matrix = torch.zeros(2, 8), torch.zeros(4, 8)
    blocks = torch.tensor([[0, 4]], dtype=torch.int32)
    cases = [
        (
            lambda: ops.shortlist_topk(x, matrix.double(), EMPTY, IDENTITY, blocks, 3, 1.0),
            "shortlist_topk: head: expected contiguous",
        ),
        (
            lambda: ops.shortlist_topk(x, matrix, EMPTY, IDENTITY, blocks, 65, 1.0),
            "shortlist_topk: k: expected 1 to 64, got 65",
        ),
        (
            lambda: ops.shortlist_topk(x, matrix, EMPTY, IDENTITY, blocks.long(), 3, 1.0),
            "shortlist_topk: blocks: expected int32 [*, 2] on cpu, got int64 [1, 2] on cpu",
        ),
        (
            lambda: ops.shortlist_topk(x, matrix, EMPTY, IDENTITY, blocks, 3, 0.0),
            "temperature: expected a finite number above 0, got 0",
        ),
        (
            lambda: ops.kv_commit([x], torch.tensor([3, 4]), torch.tensor([0])),
            "kv_commit: base: expected int64 [1] on cpu, got int64 [2] on cpu",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
