"""The head ops on a GPU against the references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


def head_case(
    dtype: torch.dtype, n: int, dim: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, head, scale, row ids) on the CPU."""
    g = torch.Generator().manual_seed(n * dim + rows)
    hidden, weight = torch.randn(n, dim, generator=g), torch.randn(rows, dim, generator=g)
    row_ids = torch.randperm(rows, generator=g).int()
    if dtype != torch.int8:
        return hidden, weight.to(dtype), torch.empty(0), row_ids
    quantised, scale = reference.quantize_rows(weight)
    return hidden, quantised, scale, row_ids


def near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    # fp16 heads round the hidden row to fp16, which the reference does not.
    torch.testing.assert_close(
        got.cpu(), expected, atol=0.05 if dtype == torch.float16 else 2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "dim", "rows"),
    [(1, 640, 5000), (8, 640, 40000), (33, 72, 3000), (32, 4096, 9000), (3, 7, 100)],
)
def test_topk(cuda: torch.device, dtype: torch.dtype, n: int, dim: int, rows: int) -> None:
    hidden, head, scale, row_ids = head_case(dtype, n, dim, rows)
    blocks = torch.tensor([[0, rows // 3], [rows // 3 + 1, rows // 2], [rows - 20, rows]]).int()
    args = (hidden, head, scale, row_ids, blocks)
    log_q, ids, lse = ops.shortlist_topk(*(t.to(cuda) for t in args), 10, 0.8)
    expected = reference.shortlist_topk(*args, 10, 0.8)
    near(log_q, expected[0], dtype)
    near(lse, expected[2], dtype)
    if dtype != torch.float16:
        assert (ids.cpu() == expected[1]).float().mean() > 0.98  # near-ties may change places


@pytest.mark.parametrize("n", [5, 20, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_probs(cuda: torch.device, dtype: torch.dtype, n: int) -> None:
    args = (*head_case(dtype, n, 128, 3000), torch.tensor([[3, 700], [800, 2999]]).int())
    log_q, ids, _ = ops.shortlist_log_probs(*(t.to(cuda) for t in args), 1.3)
    expected = reference.shortlist_log_probs(*args, 1.3)
    near(log_q, expected[0], dtype)
    assert torch.equal(ids.cpu(), expected[1])


def test_union_equals_reference(cuda: torch.device) -> None:
    g = torch.Generator().manual_seed(3)
    offsets = torch.arange(0, 262145, 64).int()
    for seed in range(5):
        scores = torch.randn(10, 4096, generator=g)
        extra = torch.randint(0, 262144, (300,), generator=g).int()
        expected, size = reference.shortlist_union(scores, offsets, extra, 512 * seed, 8192)
        blocks, got = ops.shortlist_union(
            scores.to(cuda), offsets.to(cuda), extra.to(cuda), 512 * seed, 8192
        )
        blocks = blocks.cpu()
        assert torch.equal(blocks[blocks[:, 1] > blocks[:, 0]], expected)
        assert int(got) == int(size)


def test_draft_head_is_captured_in_a_graph(cuda: torch.device) -> None:
    """No host sync, no allocation that a graph cannot hold; a replay sees new inputs."""
    hidden, head, scale, row_ids = head_case(torch.bfloat16, 8, 640, 20000)
    offsets = torch.arange(0, 20001, 100).int()
    args = [t.to(cuda) for t in (hidden, head, scale, row_ids)]
    scores = torch.randn(8, 200, device=cuda)
    rest = (
        offsets.to(cuda),
        torch.tensor([7, 19000], dtype=torch.int32, device=cuda),
        64,
        4000,
        10,
        1.0,
    )
    warm = ops.draft_head(*args, scores, *rest)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.draft_head(*args, scores, *rest)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, warm, strict=True):
        assert torch.equal(a, b)
    scores.copy_(torch.randn(8, 200))
    args[0].copy_(torch.randn(8, 640))
    graph.replay()
    for a, b in zip(captured, ops.draft_head(*args, scores, *rest), strict=True):
        assert torch.equal(a, b)


def test_a_row_does_not_depend_on_the_rows_beside_it(cuda: torch.device) -> None:
    hidden, head, scale, row_ids = (t.to(cuda) for t in head_case(torch.bfloat16, 30, 640, 8000))
    blocks = torch.tensor([[0, 8000]], dtype=torch.int32, device=cuda)
    together = ops.shortlist_topk(hidden, head, scale, row_ids, blocks, 10, 1.0)
    for i in (0, 15, 16, 29):
        alone = ops.shortlist_topk(hidden[i : i + 1], head, scale, row_ids, blocks, 10, 1.0)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[i])


def test_bad_input_is_named(cuda: torch.device) -> None:
    hidden, head, scale, row_ids = (t.to(cuda) for t in head_case(torch.bfloat16, 2, 64, 100))
    blocks = torch.tensor([[0, 100]], dtype=torch.int32, device=cuda)
    with pytest.raises(ValueError, match="hidden: expected"):
        ops.shortlist_topk(hidden[:, :10], head, scale, row_ids, blocks, 5, 1.0)
    with pytest.raises(ValueError, match="blocks: expected"):
        ops.shortlist_topk(hidden, head, scale, row_ids, blocks.cpu(), 5, 1.0)
    with pytest.raises(ValueError, match="k: expected"):
        ops.shortlist_topk(hidden, head, scale, row_ids, blocks, 65, 1.0)
    with pytest.raises(ValueError, match="temperature"):
        ops.shortlist_topk(hidden, head, scale, row_ids, blocks, 5, 0.0)
