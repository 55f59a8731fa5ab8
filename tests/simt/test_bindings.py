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

from dynaspec_cli.ops import reference, reference_tree

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


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(ops: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix, scale = weight(20, 64, dtype, generator)
    x, bias = torch.randn(3, 64, generator=generator), torch.randn(20, generator=generator)
    given = scale if scale.numel() else None
    for added in (None, bias, bias.bfloat16()):
        want = reference.linear(x, matrix, added, scale)
        close(ops.linear(x, matrix, added, given), want)
    assert ops.linear(x[:0], matrix, None, given).shape == (0, 20)


def test_router(ops: Any, generator: torch.Generator) -> None:
    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    f, e, w1, b1, w2, b2 = rand(2, 32), rand(2, 16), rand(24, 48), rand(24), rand(10, 24), rand(10)
    close(
        ops.router_clusters(f, e, w1, b1, w2, b2), reference.router_clusters(f, e, w1, b1, w2, b2)
    )
    centroids = rand(10, 32)
    alone = (f, EMPTY, EMPTY, EMPTY, centroids, EMPTY)
    close(ops.router_clusters(*alone), reference.router_clusters(*alone))


def test_trees(ops: Any, generator: torch.Generator) -> None:
    parents = torch.tensor([-1, 0, 0, 1, 1, 4])
    tokens = torch.tensor([0, 5, 6, 7, 8, 9])
    for got, want in zip(ops.tree_mask(parents), reference_tree.tree_mask(parents), strict=True):
        assert torch.equal(got, want)
    choices = torch.tensor([5, 8, 0, 0, 9, 1])
    assert ops.greedy_walk(tokens, parents, choices).tolist() == [0, 1, 4, 5, -1, -1]

    probs = torch.rand(6, 12, generator=generator)
    uniforms = torch.rand(6, generator=generator)
    path, residual = ops.stochastic_walk(tokens, parents, probs, uniforms)
    want_path, want_residual = reference_tree.stochastic_walk(tokens, parents, probs, uniforms)
    assert path[: len(want_path)].tolist() == want_path.tolist()
    close(residual, want_residual)
    q = torch.rand(2, 12, generator=generator)
    rows = torch.tensor([0, 1, -1, -1, 0, -1])
    no_ids = torch.empty(0, dtype=torch.int64)
    drawn = (tokens, parents, probs, uniforms, q, no_ids, rows, False)
    path, residual = ops.sampled_walk(*drawn)
    want_path, want_residual = reference_tree.sampled_walk(*drawn)
    assert path[: len(want_path)].tolist() == want_path.tolist()
    close(residual, want_residual)

    log_q = -torch.rand(3, 4, generator=generator)
    above = -torch.rand(3, generator=generator)
    for got, want in zip(
        ops.topk_expand(above, log_q, 5), reference_tree.topk_expand(above, log_q, 5), strict=True
    ):
        close(got, want)
    scores, forest = -torch.rand(6, generator=generator), torch.tensor([-1, -1, 0, 0, 2, 1])
    for got, want in zip(
        ops.tree_rerank(scores, forest, 4),
        reference_tree.tree_rerank(scores, forest, 4),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_kv_commit(ops: Any, dtype: torch.dtype) -> None:
    caches = [torch.arange(9 * 6).reshape(9, 2, 3).to(dtype) for _ in range(2)]
    wanted = caches[0].clone()
    wanted[[3, 4]] = wanted[[4, 7]]
    ops.kv_commit([*caches, torch.empty(9, 0)], 3, torch.tensor([1, 4, -1]))
    for cache in caches:
        assert torch.equal(cache[:5], wanted[:5])


def test_bad_input_is_named(ops: Any) -> None:
    x, matrix = torch.zeros(2, 8), torch.zeros(4, 8)
    blocks = torch.tensor([[0, 4]], dtype=torch.int32)
    cases = [
        (lambda: ops.linear(x[:, :5], matrix, None, None), "linear: x: expected float32, bfloat16"),
        (lambda: ops.linear(x, matrix.double(), None, None), "linear: weight: expected contiguous"),
        (lambda: ops.linear(x, matrix.to(torch.int8), None, None), "scale: expected a scale with"),
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
            lambda: ops.tree_mask(torch.zeros(2000, dtype=torch.int64)),
            "tree_mask: parents: expected a tree of 1 to 1025 rows, got 2000",
        ),
        (
            lambda: ops.kv_commit([x], 3, torch.tensor([0])),
            "kv_commit: caches: expected contiguous tensors of more than 3 rows",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
