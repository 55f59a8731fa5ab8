"""The capped context set against a plain model of "least recently seen goes first"."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.shortlist.context import ContextTokens
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.weights.weight import dense


@pytest.mark.parametrize("capacity", [0, 1, 3, 10, 40, 60])
@pytest.mark.parametrize("permuted", [False, True])
def test_keeps_the_most_recently_seen(capacity, permuted):
    g = torch.Generator().manual_seed(capacity)
    order = torch.randperm(50, generator=g)[:40] if permuted else None
    head = build_head(dense(torch.randn(50, 4, generator=g)), order)
    context = ContextTokens(head, capacity)
    held = min(capacity, head.num_rows)
    recent: list[int] = []
    for _ in range(200):
        m = int(torch.randint(0, 12, (1,), generator=g))
        ids = torch.randint(0, 50, (m,), generator=g)
        context.add(ids)
        for i in ids.tolist():
            if order is None or i in order.tolist():
                recent = [x for x in recent if x != i] + [i]
        recent = recent[-held:] if held else []
        rows = context.rows()
        assert rows.dtype == torch.int32
        assert len(context) == rows.numel() <= capacity
        assert sorted(rows.tolist()) == sorted(
            head.rows_of(torch.tensor(recent, dtype=torch.int64)).tolist()
        )


def test_one_batch_larger_than_the_capacity_keeps_its_end():
    context = ContextTokens(build_head(dense(torch.randn(100, 4))), 10)
    context.add(torch.arange(100))
    assert sorted(context.rows().tolist()) == list(range(90, 100))
    context.add(torch.tensor([5, 5, 95]))
    assert sorted(context.rows().tolist()) == [5, *range(91, 100)]
