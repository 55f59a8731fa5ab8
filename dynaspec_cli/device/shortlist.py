"""Each shortlist's counterpart on the device: which rows of the head a draft step scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.device.context import Context, holds
from dynaspec_cli.device.head import fits
from dynaspec_cli.device.selection import (
    Clusters,
    Selection,
    clusters_of,
    selected,
    with_clusters,
)
from dynaspec_cli.protocols import Shortlist
from dynaspec_cli.shortlist.dynaspec import DynaSpecShortlist, PendingSelection
from dynaspec_cli.shortlist.frequency import FrequencyShortlist
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import DraftHead
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist, row_blocks
from dynaspec_cli.shortlist.router import Router


@dataclass(frozen=True)
class PrefixRows:
    """``full``, ``fr-spec``, ``vocabtrim``, ``pa-fr``: the first rows of the head, as many as the
    draft position says."""

    head: DraftHead
    budgets: tuple[int, ...]

    def budget(self, level: int) -> int:
        return self.budgets[min(level, len(self.budgets) - 1)]

    @cached_property
    def _counts(self) -> Tensor:
        return torch.tensor(self.budgets, device=self.head.device)

    def select(self, level: int) -> Selection:
        """Of draft step ``level``, from 0."""
        rows = torch.arange(self.budget(level), device=self.head.device)
        return Selection(rows, self._counts[min(level, len(self.budgets) - 1)], first=True)


@dataclass(frozen=True)
class ContextRows:
    """``nanospec`` and ``dynaspec``: ``core`` rows, the context's, and while the text brings new
    tokens whole clusters by the ``router``'s scores, up to ``budgets`` by draft position."""

    head: DraftHead
    core: int
    capacity: int
    budgets: tuple[int, ...] = ()
    router: Router | None = None
    offsets: Tensor | None = None

    @cached_property
    def clusters(self) -> Clusters:
        assert self.offsets is not None
        return clusters_of(self.offsets, self.head.num_rows)

    def most(self, level: int, routed: bool) -> int:
        """Rows that a selection can have."""
        rows = self.core + self.capacity
        if routed:
            rows = max(rows, self.budgets[min(level, len(self.budgets) - 1)])
        return min(rows, self.head.num_rows)

    def select(
        self, level: int, context: Context, scores: Tensor | None, live: Tensor
    ) -> Selection:
        """``scores`` float32 [w, M] of the clusters for a frontier whose ``live`` bool [w] rows are
        there; None: no clusters."""
        rows = torch.arange(self.head.num_rows, device=self.head.device)
        taken = rows < self.core
        if self.capacity:
            taken = taken | holds(context)
        if scores is not None:
            budget = self.budgets[min(level, len(self.budgets) - 1)]
            taken = with_clusters(taken, scores, live, self.clusters, budget)
        return selected(taken, self.most(level, scores is not None))


Rows = PrefixRows | ContextRows


def rows_of(shortlist: Shortlist) -> Rows | None:
    """What chooses on the device the rows that ``shortlist`` chooses; None for one that has no such
    form. Subclasses of other packages may choose otherwise, so types must agree exactly."""
    kind = type(shortlist)
    head = getattr(shortlist, "head", None)
    if not isinstance(head, DraftHead) or not fits(head):
        return None
    if kind is FullShortlist:
        assert isinstance(shortlist, FullShortlist)
        return PrefixRows(shortlist.head, (shortlist.head.num_rows,))
    if kind is FrequencyShortlist:
        assert isinstance(shortlist, FrequencyShortlist)
        return PrefixRows(shortlist.head, shortlist.budgets)
    if kind is NanoSpecShortlist:
        assert isinstance(shortlist, NanoSpecShortlist)
        capacity = min(shortlist.size, shortlist.head.num_rows)
        return ContextRows(shortlist.head, 0, capacity)
    if kind is DynaSpecShortlist:
        assert isinstance(shortlist, DynaSpecShortlist)
        s = shortlist
        capacity = max(0, min(s.context_cap, s.head.num_rows))
        return ContextRows(s.head, s.core, capacity, s.budgets, s.router, s.offsets)
    return None


def routed(rows: Rows, shortlist: Shortlist, state: Any) -> bool:
    """Are clusters asked for in the next round? The host decides, by the novelty of the text."""
    if not isinstance(rows, ContextRows) or rows.router is None:
        return False
    assert isinstance(shortlist, DynaSpecShortlist)
    return bool(state.novelty.share >= shortlist.routed_from)


def on_host(rows: Tensor, count: int, shared: bool) -> PendingSelection:
    """A selection as the host's shortlists keep it: rows int64 [capacity] on the host."""
    return PendingSelection(row_blocks(rows[:count]), count, shared, count, done=True)


def prefix_on_host(count: int) -> PendingSelection:
    """``on_host`` of the first rows."""
    blocks = torch.tensor([[0, count]], dtype=torch.int32)
    return PendingSelection(blocks, count, False, count, done=True)
