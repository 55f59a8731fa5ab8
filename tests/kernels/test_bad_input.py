"""Every bad argument is refused: what was expected, what came. The fallback says the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from head_cases import EMPTY, IDENTITY
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops import head as head_ops
from dynaspec_cli.ops.extension import EXTENSION

X = torch.randn(2, 8)
W = torch.randn(20, 8)
W8 = torch.ones(20, 8, dtype=torch.int8)
NAN = torch.full((2, 8), float("nan"))
INF = torch.full((2, 8), float("inf"))
OFFSETS = torch.tensor([0, 5, 20], dtype=torch.int32)
SCORES = torch.zeros(2, 2)


def int32(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


ALL = int32([0, 20])


@pytest.fixture(params=["compiled", "fallback"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(head_ops, "compiled", lambda x: False)
    elif EXTENSION.module is None:
        pytest.skip(EXTENSION.reason)
    return request.param


def topk(**changed: object) -> Callable[[], object]:
    arguments = {
        "hidden": X, "head": W, "head_scale": EMPTY, "row_ids": IDENTITY, "blocks": ALL, "k": 3,
        "temperature": 1.0,
    }  # fmt: skip
    return lambda: ops.shortlist_topk(**{**arguments, **changed})


def union(**changed: object) -> Callable[[], object]:
    arguments = {
        "cluster_scores": SCORES, "cluster_offsets": OFFSETS, "extra_rows": int32(), "core_rows": 0,
        "budget": 10,
    }  # fmt: skip
    return lambda: ops.shortlist_union(**{**arguments, **changed})


def router(**changed: object) -> Callable[[], object]:
    """d = 8, e = 3, h = 5, M = 6."""
    arguments = {
        "features": X, "tokens_embedding": torch.randn(2, 3), "w1": torch.randn(5, 11),
        "b1": torch.zeros(5), "w2": torch.randn(6, 5), "b2": torch.zeros(6),
    }  # fmt: skip
    return lambda: ops.router_clusters(**{**arguments, **changed})


CASES: list[tuple[Callable[[], object], str]] = [
    (
        lambda: ops.linear(X[:, :5], W, None, None),
        r"linear: x: expected .*\[n, 8\].*, got .*\[2, 5\]",
    ),
    (lambda: ops.linear(X[0], W, None, None), r"linear: x: expected .*\[n, 8\].*, got .*\[8\]"),
    (
        lambda: ops.linear(X.double(), W, None, None),
        r"linear: x: expected float32.*, got \w+ \[2, 8\]",
    ),
    (
        lambda: ops.linear(X, W[0], None, None),
        r"linear: weight: expected a contiguous matrix.*got .*\[8\]",
    ),
    (
        lambda: ops.linear(X, W.double(), None, None),
        r"linear: weight: expected float32, bfloat16, float16 or int8",
    ),
    (lambda: ops.linear(X, W8, None, None), r"linear: weight: .*scale"),
    (
        lambda: ops.linear(X, W8, None, torch.ones(3)),
        r"linear: scale: expected contiguous float32 \[20\], got .*\[3\]",
    ),
    (
        lambda: ops.linear(X, W, torch.ones(3), None),
        r"linear: bias: expected floating-point \[20\], got .*\[3\]",
    ),
    (topk(hidden=X[:, :5]), r"shortlist_topk: hidden: expected .*\[n, 8\].*, got .*\[2, 5\]"),
    (
        topk(hidden=NAN),
        r"shortlist_topk: hidden: expected finite logits, got NaN or infinity in row 0",
    ),
    (
        topk(hidden=INF),
        r"shortlist_topk: hidden: expected finite logits, got NaN or infinity in row 0",
    ),
    (topk(hidden=NAN, head=W8, head_scale=torch.ones(20)), r"hidden: expected finite logits"),
    (topk(head=W8), r"shortlist_topk: head: .*scale"),
    (topk(row_ids=int32(1, 2)), r"shortlist_topk: row_ids: expected int32 \[20\].*, got .*\[2\]"),
    (
        topk(row_ids=torch.arange(20)),
        r"shortlist_topk: row_ids: expected int32 \[20\].*, got \w+ \[20\]",
    ),
    (topk(k=0), r"shortlist_topk: k: expected at least 1, got 0"),
    (
        topk(temperature=0.0),
        r"shortlist_topk: temperature: expected a finite number above 0, got 0",
    ),
    (
        topk(temperature=float("nan")),
        r"shortlist_topk: temperature: expected a finite number above 0, got nan",
    ),
    (topk(blocks=int32(0, 20)), r"shortlist_topk: blocks: expected int32 \[b, 2\].*, got .*\[2\]"),
    (topk(blocks=torch.tensor([[0, 20]])), r"shortlist_topk: blocks: expected int32 \[b, 2\]"),
    (
        topk(blocks=int32([0, 21])),
        r"blocks: expected ascending, disjoint ranges within \[0, 20\), got",
    ),
    (
        topk(blocks=int32([-1, 3])),
        r"blocks: expected ascending, disjoint ranges within \[0, 20\), got",
    ),
    (
        topk(blocks=int32([5, 9], [0, 3])),
        r"blocks: expected ascending, disjoint ranges within \[0, 20\), got",
    ),
    (
        topk(blocks=int32([0, 9], [8, 10])),
        r"blocks: expected ascending, disjoint ranges within \[0, 20\), got",
    ),
    (topk(blocks=int32([3, 3])), r"shortlist_topk: blocks: expected at least one row, got none"),
    (
        union(cluster_scores=torch.zeros(2, 3)),
        r"cluster_scores: expected float32 \[n, 2\].*, got .*\[2, 3\]",
    ),
    (union(cluster_scores=SCORES.double()), r"cluster_scores: expected float32 \[n, 2\]"),
    (
        union(cluster_scores=torch.full((1, 2), float("nan"))),
        r"cluster_scores: expected numbers, got a NaN",
    ),
    (
        union(cluster_offsets=int32(0, 9, 5)),
        r"cluster_offsets: expected ascending borders from 0 on, got",
    ),
    (
        union(cluster_offsets=int32(-4, 9, 15)),
        r"cluster_offsets: expected ascending borders from 0 on, got",
    ),
    (
        union(cluster_offsets=torch.tensor([0, 5, 20])),
        r"cluster_offsets: expected int32 \[M \+ 1\]",
    ),
    (union(extra_rows=int32(3, -1)), r"extra_rows: expected rows from 0 on, got -1"),
    (union(extra_rows=torch.tensor([3])), r"extra_rows: expected int32 \[r\]"),
    (union(core_rows=-1), r"core_rows: expected 0 or more rows, got -1"),
    (union(budget=-1), r"budget: expected 0 or more rows, got -1"),
    (router(features=X[0]), r"router_clusters: features: expected .*, \*\].*, got .*\[8\]"),
    (router(features=X.double()), r"router_clusters: features: expected float32, bfloat16"),
    (
        router(tokens_embedding=torch.randn(3, 3)),
        r"router_clusters: tokens_embedding: expected .*\[2, \*\].*, got .*\[3, 3\]",
    ),
    (
        router(tokens_embedding=torch.randn(2, 4)),
        r"router_clusters: w1: expected \[\*, 12\].*, got .*\[5, 11\]",
    ),
    (router(w1=torch.randn(11)), r"router_clusters: w1: expected \[\*, 11\].*, got .*\[11\]"),
    (router(b1=torch.zeros(1)), r"router_clusters: b1: expected .*\[5\], got .*\[1\]"),
    (router(b1=EMPTY), r"router_clusters: b1: expected .*\[5\], got .*\[0\]"),
    (
        router(w2=torch.randn(6, 8)),
        r"router_clusters: w2: expected \[\*, 5\].*, got .*\[6, 8\]",
    ),
    (router(w2=torch.randn(6, 5).double()), r"router_clusters: w2: expected float32, bfloat16"),
    (router(b2=torch.zeros(5)), r"router_clusters: b2: expected .*\[6\], got .*\[5\]"),
    (router(b2=torch.zeros(6).int()), r"router_clusters: b2: expected floating-point \[6\]"),
    (router(w1=EMPTY, w2=torch.randn(6, 7)), r"router_clusters: w2: expected \[\*, 8\]"),
]


@pytest.mark.parametrize(("call", "message"), CASES)
def test_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_logits_that_are_no_numbers_have_a_type() -> None:
    """In each op of a head, compiled or not; so callers need not read the message."""
    args = (W, EMPTY, IDENTITY)
    for hidden in (NAN, INF):
        for call in (
            topk(hidden=hidden),
            lambda hidden=hidden: ops.shortlist_log_probs(hidden, *args, ALL, 1.0),
            lambda hidden=hidden: ops.draft_head(
                hidden, *args, SCORES, OFFSETS, EMPTY.to(torch.int32), 20, 20, 3, 1.0
            ),
        ):
            with pytest.raises(ops.NotFiniteLogits):
                call()


def test_union_beyond_the_head() -> None:
    outside = (X, W, EMPTY, IDENTITY, SCORES, OFFSETS, int32(20), 0, 10, 3, 1.0)
    with pytest.raises(
        ValueError, match=r"blocks: expected ascending, disjoint ranges within \[0, 20\)"
    ):
        ops.draft_head(*outside)


def test_log_probs_checks_as_topk_does() -> None:
    with pytest.raises(
        ValueError, match=r"shortlist_log_probs: blocks: expected at least one row, got none"
    ):
        ops.shortlist_log_probs(X, W, EMPTY, IDENTITY, int32([3, 3]), 1.0)
    with pytest.raises(
        ops.NotFiniteLogits, match=r"shortlist_log_probs: hidden: expected finite logits"
    ):
        ops.shortlist_log_probs(NAN, W, EMPTY, IDENTITY, ALL, 1.0)
