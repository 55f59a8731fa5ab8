"""Dense and shortlist ops against the references, and what must hold bit for bit."""

from __future__ import annotations

import pytest
import torch
from head_cases import (
    DTYPES,
    EMPTY,
    IDENTITY,
    HeadCase,
    assert_same_topk,
    make_case,
    make_weight,
)

from dynaspec_cli import ops
from dynaspec_cli.ops import reference
from dynaspec_cli.ops.extension import EXTENSION

built = pytest.mark.skipif(EXTENSION.module is None, reason=EXTENSION.reason)
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@by_dtype
@pytest.mark.parametrize(
    ("n", "k", "m"),
    [
        (1, 1, 1),
        (1, 640, 16),
        (2, 31, 15),
        (5, 33, 17),
        (6, 64, 4097),
        (7, 65, 3),
        (17, 127, 66),
        (97, 100, 50),
        # Too wide for the L1 cache: k in spans, and what is left of it after the last whole step.
        (7, 4096, 21),
        (8, 2069, 37),
        (10, 1553, 16),
        (12, 2048, 35),
    ],
)
def test_linear(n: int, k: int, m: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(n * 1000 + k)
    weight, scale = make_weight(m, k, dtype, g)
    x = torch.randn(n, k, generator=g) / k**0.5
    for bias in (None, torch.randn(m, generator=g)):
        got = ops.linear(x, weight, bias, scale if scale.numel() else None)
        want = reference.linear(x, weight, bias, scale)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@by_dtype
def test_linear_reads_half_precision_activations(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    weight, scale = make_weight(40, 70, dtype, g)
    for x_dtype in (torch.bfloat16, torch.float16):
        x = (torch.randn(3, 70, generator=g) / 8).to(x_dtype)
        want = reference.linear(x, weight, None, scale)
        torch.testing.assert_close(ops.linear(x, weight, None, scale), want, atol=2e-5, rtol=1e-5)


def test_linear_without_rows() -> None:
    assert ops.linear(torch.zeros(0, 8), torch.zeros(4, 8), None, None).shape == (0, 4)
    assert ops.linear(torch.zeros(3, 8), torch.zeros(0, 8), None, None).shape == (3, 0)
    assert torch.equal(
        ops.linear(torch.zeros(2, 0), torch.zeros(3, 0), None, None), torch.zeros(2, 3)
    )


@built
def test_int8_products_are_exact() -> None:
    """Integers are summed without rounding, extremes of the range included."""
    weight = torch.randint(-128, 128, (37, 4097), dtype=torch.int8)
    weight[0] = -128
    x = torch.randint(-127, 128, (3, 4097)).float()
    x[:, 0] = 127  # scale 1: x is its own quantisation
    x[0] = 127
    want = (x.double() @ weight.double().t()).float()
    assert torch.equal(ops.linear(x, weight, None, torch.ones(37)), want)


@by_dtype
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("n", "d", "vocab", "k"), [(1, 64, 300, 1), (5, 33, 1000, 10), (17, 640, 4097, 64)]
)
def test_shortlist(
    n: int, d: int, vocab: int, k: int, temperature: float, dtype: torch.dtype
) -> None:
    case = make_case(n, n, d, vocab, dtype)
    blocks, size = ops.shortlist_union(*case.union)
    want_blocks, want_size = reference.shortlist_union(*case.union)
    assert torch.equal(blocks, want_blocks)
    assert int(size) == int(want_size)

    atol = 2e-5
    want = reference.shortlist_topk(*case.dense, blocks, k, temperature)
    got = ops.shortlist_topk(*case.dense, blocks, k, temperature)
    assert_same_topk(got, want, atol)

    log_q, ids, lse = ops.shortlist_log_probs(*case.dense, blocks, temperature)
    want_q, want_ids, want_lse = reference.shortlist_log_probs(*case.dense, blocks, temperature)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(log_q, want_q, atol=atol, rtol=0)
    torch.testing.assert_close(lse, want_lse, atol=atol, rtol=0)
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(n), atol=1e-5, rtol=0)

    fused = ops.draft_head(*case.dense, *case.union, k, temperature)
    for a, b in zip(fused, (*got, size, blocks), strict=True):
        assert torch.equal(a, b)


def test_whole_vocabulary_argmax() -> None:
    case = make_case(3, 65, 40, 2000, torch.float32, permuted=False)
    full = torch.tensor([[0, 2000]], dtype=torch.int32)
    log_q, ids, lse = ops.shortlist_topk(*case.dense, full, 1, 1.0)
    logits = case.hidden @ case.head.t()
    assert torch.equal(ids[:, 0], logits.argmax(1))
    torch.testing.assert_close(log_q[:, 0], logits.log_softmax(1).amax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(lse, logits.logsumexp(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_ties_go_to_the_lower_row(k: int) -> None:
    """Rows 5, 700, 1300, 1999 share the best logit, all others are equal as well."""
    head = torch.zeros(2000, 8)
    head[[5, 700, 1300, 1999]] = 1.0
    hidden = torch.ones(3, 8)
    full = torch.tensor([[0, 2000]], dtype=torch.int32)
    _, ids, _ = ops.shortlist_topk(hidden, head, EMPTY, IDENTITY, full, k, 1.0)
    assert ids[1].tolist() == [5, 700, 1300, 1999, 0, 1, 2, 3, 4][:k]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_ties_between_the_threads_portions_go_to_the_lower_row(threads: int) -> None:
    """Every chunk of 256 rows has one of the best: which thread took it must not show."""
    head = torch.zeros(8192, 16)
    head[7::256] = 1.0
    full = torch.tensor([[0, 8192]], dtype=torch.int32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(20):
            _, ids, _ = ops.shortlist_topk(torch.ones(2, 16), head, EMPTY, IDENTITY, full, 20, 1.0)
            assert ids[1].tolist() == list(range(7, 20 * 256, 256))
    finally:
        torch.set_num_threads(before)


def test_more_asked_than_selected() -> None:
    case = make_case(4, 2, 16, 50, torch.float32)
    blocks = torch.tensor([[3, 4], [10, 12]], dtype=torch.int32)
    log_q, ids, _ = ops.shortlist_topk(*case.dense, blocks, 10, 1.0)
    assert log_q.shape == (2, 3)
    assert sorted(ids[0].tolist()) == sorted(case.row_ids[[3, 10, 11]].tolist())


def test_empty_blocks_between_others() -> None:
    case = make_case(5, 2, 16, 50, torch.float32)
    tight = torch.tensor([[3, 9], [20, 30]], dtype=torch.int32)
    loose = torch.tensor([[0, 0], [3, 9], [9, 9], [20, 30], [50, 50]], dtype=torch.int32)
    results = [ops.shortlist_topk(*case.dense, blocks, 4, 1.0) for blocks in (tight, loose)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_large_logits_do_not_overflow() -> None:
    head = torch.tensor([[1000.0], [-1000.0], [999.0]])
    full = torch.tensor([[0, 3]], dtype=torch.int32)
    log_q, ids, lse = ops.shortlist_topk(torch.ones(1, 1), head, EMPTY, IDENTITY, full, 3, 1.0)
    expected = 1000 + torch.log1p(torch.tensor(-1.0).exp()).item()
    assert ids.tolist() == [[0, 2, 1]]
    assert lse.item() == pytest.approx(expected)
    assert log_q[0, 2].item() == pytest.approx(-1000 - expected)


@built
@by_dtype
def test_a_row_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    """Bit for bit the same for every number of rows passed with it."""
    company(make_case(6, 101, 100, 1111, dtype), (1, 2, 3, 4, 5, 6, 7, 11, 13, 17, 64))


@built
@by_dtype
@pytest.mark.parametrize("d", [1040, 2069, 4096])
def test_a_wide_row_does_not_depend_on_its_company(d: int, dtype: torch.dtype) -> None:
    """The same where k is cut into spans for some numbers of rows and not for others."""
    company(make_case(6, 20, d, 301, dtype), (1, 2, 4, 6, 7, 8, 9, 10, 11, 12, 13))


def company(case: HeadCase, numbers: tuple[int, ...]) -> None:
    """The first and last n rows of a case alone, against all of them together."""
    everyone = case.hidden.size(0)
    blocks, _ = ops.shortlist_union(*case.union)
    scale = case.scale if case.scale.numel() else None
    together = (
        ops.linear(case.hidden, case.head, None, scale),
        *ops.shortlist_topk(*case.dense, blocks, 7, 0.8),
        ops.shortlist_log_probs(*case.dense, blocks, 0.8)[0],
    )
    for n in numbers:
        for first in (0, everyone - n):
            rows = slice(first, first + n)
            x = case.hidden[rows]
            dense = (x, *case.dense[1:])
            alone = (
                ops.linear(x, case.head, None, scale),
                *ops.shortlist_topk(*dense, blocks, 7, 0.8),
                ops.shortlist_log_probs(*dense, blocks, 0.8)[0],
            )
            for a, b in zip(alone, together, strict=True):
                assert torch.equal(a, b[rows])


@built
@by_dtype
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    case = make_case(7, 9, 128, 9000, dtype, budget=7000)
    blocks, _ = ops.shortlist_union(*case.union)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(
                (
                    ops.linear(case.hidden, case.head, None, case.scale),
                    *ops.shortlist_topk(*case.dense, blocks, 20, 1.0),
                    *ops.shortlist_log_probs(*case.dense, blocks, 1.0),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@built
def test_columns_do_not_depend_on_the_rest_of_the_weight() -> None:
    """An output is the same whether its weight row stands alone or in a block, first or last."""
    g = torch.Generator().manual_seed(8)
    for dtype in DTYPES.values():
        weight, scale = make_weight(70, 77, dtype, g)
        x = torch.randn(8, 77, generator=g)
        whole = ops.linear(x, weight, None, scale)
        for lo, hi in ((0, 1), (3, 8), (69, 70), (13, 50)):
            part = ops.linear(x, weight[lo:hi], None, scale[lo:hi])
            assert torch.equal(part, whole[:, lo:hi])


def test_router() -> None:
    g = torch.Generator().manual_seed(9)
    features, embedding = torch.randn(5, 24, generator=g), torch.randn(5, 16, generator=g)
    w1, b1 = torch.randn(33, 40, generator=g) / 6, torch.randn(33, generator=g)
    w2, b2 = torch.randn(50, 33, generator=g) / 6, torch.randn(50, generator=g)
    got = ops.router_clusters(features, embedding, w1, b1, w2, b2)
    want = reference.router_clusters(features, embedding, w1, b1, w2, b2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    centroids = torch.randn(50, 24, generator=g)
    for bias in (EMPTY, b2):
        got = ops.router_clusters(features, EMPTY, EMPTY, EMPTY, centroids, bias)
        want = reference.router_clusters(features, EMPTY, EMPTY, EMPTY, centroids, bias)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
