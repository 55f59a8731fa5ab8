"""Shortlists ranked by frequency: FR-Spec, VocabTrim and the position-aware PA-FR.

FR-Spec (arXiv 2502.14856) takes the N most frequent tokens of a corpus, VocabTrim (arXiv
2506.22694) those of text that the target generated, PA-FR (arXiv 2510.13847 v1) lets N fall with
the draft position. All are prefixes of one order, so the head holds the order's rows and a
selection is the range [0, N).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.token_map import load_token_map
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.protocols import ShortlistQuery, TargetOutput
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.shortlist.head import DraftHead
from dynaspec_cli.shortlist.registry import DEFAULT_SIZES
from dynaspec_cli.shortlist.request import ShortlistRequest
from dynaspec_cli.shortlist.schedule import BudgetSchedule

PA_FR_DECAY = 0.8


class FrequencyShortlist(BlockShortlist[None, Selection]):
    """``head`` in order of frequency; ``budgets``: rows by draft position (the last one repeats);
    ``size``: their mean, where they differ."""

    def __init__(
        self, name: str, head: DraftHead, budgets: tuple[int, ...], size: int | None = None
    ) -> None:
        super().__init__(head, budgets[0] if size is None else size)
        self.name = name
        self.budgets = tuple(min(b, head.num_rows) for b in budgets)
        self._choices = [
            (torch.tensor([[0, n]], dtype=torch.int32, device=head.device), n) for n in self.budgets
        ]

    def begin(self, prompt: Tensor, prefill: TargetOutput) -> None:
        """There is nothing to remember."""

    def select(self, state: None, query: ShortlistQuery) -> Selection:
        blocks, size = self._choices[min(query.depth, len(self._choices)) - 1]
        return Selection(blocks, size, shared=False)


def create(request: ShortlistRequest) -> FrequencyShortlist:
    """Of the method's own token counts in the bundle, or of a token map."""
    if request.token_map is not None:
        return _from_token_map(request.token_map, request)
    method, bundle = request.method, request.bundle()
    size = request.size
    if size is None and method == bundle.config.method:
        size = min(bundle.config.shortlist_size, request.target.vocab_size)
    size = replace(request, size=size).tokens(DEFAULT_SIZES[method])
    order = bundle.generated if method == "vocabtrim" else bundle.frequency
    if order is None:
        raise DynaSpecError(
            f"{bundle.source}: holds no token counts for {method}; build it with --method {method}"
        )
    if order.numel() < size:
        raise UsageError(
            f"--shortlist-size: {bundle.source} ranks {order.numel()} tokens for {method}, got "
            f"{size}"
        )
    decay = PA_FR_DECAY if method == "pa-fr" else 1.0
    budgets = BudgetSchedule(size, order.numel(), decay, request.depth).table()
    return _ranked(method, order[: max(budgets)], budgets, size, request)


def _from_token_map(path: Path, request: ShortlistRequest) -> FrequencyShortlist:
    """A fixed shortlist from a file of absolute ids, most frequent first; a size takes a prefix."""
    size = None if request.size is None else request.tokens(request.size)
    ids = load_token_map(path, request.target.vocab_size, size).ids[:size]
    return _ranked("fr-spec", ids, (ids.numel(),), ids.numel(), request)


def _ranked(
    method: str, ids: Tensor, budgets: tuple[int, ...], size: int, request: ShortlistRequest
) -> FrequencyShortlist:
    order = request.held(ids.long())
    if not order.numel():
        raise DynaSpecError(
            f"--shortlist: none of the {ids.numel()} tokens of {method} has a row in the drafter's "
            "head; choose another --shortlist"
        )
    head = request.draft_head(order)
    budgets = tuple(min(budget, head.num_rows) for budget in budgets)
    return FrequencyShortlist(method, head, budgets, min(size, head.num_rows))
