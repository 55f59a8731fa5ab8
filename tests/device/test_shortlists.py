"""Shortlists in fixed shapes choose the host's rows."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.device import context as contexts
from dynaspec_cli.device.head import score
from dynaspec_cli.device.kernels import reference
from dynaspec_cli.device.selection import (
    Clusters,
    Selection,
    clusters_of,
    selected,
    with_clusters,
)
from dynaspec_cli.shortlist.context import ContextTokens
from dynaspec_cli.shortlist.head import DraftHead, build_head
from dynaspec_cli.weights.weight import dense

from .capture import recorded

VOCAB, DIM = 90, 16


def a_head(seed: int = 0, order: bool = True) -> DraftHead:
    g = torch.Generator().manual_seed(seed)
    weight = dense(torch.randn(VOCAB, DIM, generator=g))
    return build_head(weight, torch.randperm(VOCAB, generator=g)[:80] if order else None)


@pytest.mark.parametrize("capacity", [1, 7, 40, 200])
def test_context_is_the_host_s(capacity: int) -> None:
    g = torch.Generator().manual_seed(capacity)
    head = a_head()
    host = ContextTokens(head, capacity)
    context = contexts.empty(head.num_rows, host.capacity, torch.device("cpu"))
    everywhere = torch.arange(head.num_rows)
    for step in range(60):
        count = int(torch.randint(0, 30 if step % 7 else 120, (1,), generator=g))
        tokens = torch.randint(0, VOCAB, (count,), generator=g)
        host.add(tokens)
        padded = torch.cat([head.rows_of(tokens), torch.full((130 - count,), -1)])
        context = contexts.add(context, padded)
        members = context.rows[context.rows >= 0].sort().values
        assert members.tolist() == sorted(host.host_rows().tolist())
        assert torch.equal(contexts.holds(context), host.holds(everywhere))


def test_the_journal_repeats_the_context() -> None:
    head = a_head()
    host = ContextTokens(head, 20)
    g = torch.Generator().manual_seed(5)
    host.add(torch.randint(0, VOCAB, (50,), generator=g))
    copy = contexts.empty(head.num_rows, 20, torch.device("cpu"))
    copy = contexts.add(copy, host.in_order())
    host.journal = []
    for _ in range(20):
        host.add(torch.randint(0, VOCAB, (9,), generator=g))
        copy = contexts.add(copy, torch.cat(host.journal))
        host.journal.clear()
        assert torch.equal(contexts.holds(copy), host.holds(torch.arange(head.num_rows)))


def unions(seed: int) -> tuple[Tensor, Tensor, Tensor, int, int, Tensor]:
    """(scores, offsets, extra rows, core, budget, live rows)."""
    g = torch.Generator().manual_seed(seed)
    core, rows, clusters = 6, 80, 9
    borders = torch.randint(core, rows + 1, (clusters - 1,), generator=g).sort().values
    offsets = torch.cat([torch.tensor([core]), borders, torch.tensor([rows])]).int()
    scores = torch.randn(4, clusters, generator=g)
    if seed % 3 == 0:
        scores = scores.round()
    live = torch.tensor([True, seed % 2 == 0, seed % 5 == 0, False])
    extra = torch.randperm(rows, generator=g)[: seed % 12].int()
    budget = int(torch.randint(0, rows + 5, (1,), generator=g))
    return scores, offsets, extra, core, budget, live


@pytest.mark.parametrize("seed", range(40))
def test_clusters_are_the_union_op_s(seed: int) -> None:
    scores, offsets, extra, core, budget, live = unions(seed)
    rows = 80
    taken = torch.arange(rows) < core
    taken[extra.long()] = True
    always = int(taken.sum())
    scores[3] = torch.nan  # a row that is not there
    all_taken = with_clusters(taken, scores, live, clusters_of(offsets, rows), budget)
    got = selected(all_taken, max(budget, always))
    blocks, size = ops.shortlist_union(scores[live], offsets, extra, core, budget)
    want = torch.cat([torch.arange(lo, hi) for lo, hi in blocks.tolist()])
    assert got.rows[: int(got.size)].tolist() == want.tolist()
    assert int(got.size) == int(size)
    assert bool((got.rows[int(got.size) :] == -1).all())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("count", [1, 3, 40, 80])
def test_scores_are_the_head_s(count: int, ordered: bool) -> None:
    head = a_head(order=ordered)
    g = torch.Generator().manual_seed(count)
    rows = torch.randperm(head.num_rows, generator=g)[:count].sort().values
    hidden = torch.randn(3, DIM, generator=g)
    selection = Selection(torch.cat([rows, torch.full((5,), -1)]), torch.tensor(count))
    starts = rows.int()
    blocks = torch.stack([starts, starts + 1], 1)
    log_q, ids, _ = head.topk(hidden, blocks, 4, 0.7)
    found = score(head, hidden, selection, 4, -0.25, 0.7, whole=False)
    k = min(4, count)
    torch.testing.assert_close(found.log_q[:, :k], log_q - 0.25)
    assert torch.equal(found.ids[:, :k], ids)
    assert bool((found.ids[:, k:] == -1).all())
    whole = score(head, hidden, selection, 4, -0.25, 0.7, whole=True)
    log_probs, all_ids, _ = head.log_probs(hidden, blocks, count, 0.7)
    assert whole.log_probs is not None
    assert whole.all_ids is not None
    torch.testing.assert_close(whole.log_probs[:, :count], log_probs)
    assert bool((whole.log_probs[:, count:] == -torch.inf).all())
    assert whole.all_ids.tolist() == [*all_ids.tolist(), *[-1] * 5]
    assert torch.equal(whole.ids, found.ids)


def test_a_logit_that_is_no_number_shows() -> None:
    weight, hidden = torch.randn(30, 8), torch.randn(2, 8)
    weight[7] = torch.nan
    rows = torch.arange(30)
    log_q, _ = reference.head_topk(hidden, weight, rows, torch.tensor(30), 4, 1.0)
    assert bool(log_q.isnan().all())


def test_choosing_is_the_same_operations_whatever_the_data() -> None:
    def choose(seed: int, clusters: Clusters) -> None:
        g = torch.Generator().manual_seed(seed)
        context = contexts.empty(80, 12, torch.device("cpu"))
        context = contexts.add(context, torch.randint(-1, 80, (20,), generator=g))
        scores, live = torch.randn(4, 9, generator=g), torch.rand(4, generator=g) < 0.5
        taken = contexts.holds(context)
        selected(with_clusters(taken, scores, live, clusters, 50), 50)

    clusters = clusters_of(unions(1)[1], 80)
    seen = [recorded(functools.partial(choose, seed, clusters)) for seed in range(4)]
    assert all(each == seen[0] for each in seen)
