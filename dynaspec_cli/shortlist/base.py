"""What all shortlists share: a selection of row ranges, scored by the head, with the mass it is
believed to hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, ShortlistQuery, TargetOutput
from dynaspec_cli.shortlist.head import DraftHead

LOG_MASS = math.log(0.95)
"""Logarithm of the share of the target's probability that a shortlist is taken to hold.

A softmax over S gives q(x | x in S), which overstates q(x) by 1 / P(S): it favours deep paths.
``log_q = log_softmax_S + log P(S)`` undoes it. 0.95 is the share of the target's top tokens that
the default shortlist held on held-out text; estimating it while decoding gained nothing
(docs/methods/shortlists.md). It enters priorities only: verification uses the distribution that was
drawn from."""


@dataclass
class Selection:
    """Rows to score for one frontier: ``blocks`` int32 [b, 2] ascending and disjoint, ``size`` rows
    in all. ``shared``: the frontier was asked which rows (``DraftHeadOutput``)."""

    blocks: Tensor
    size: int
    shared: bool = True


State = TypeVar("State")
Chosen = TypeVar("Chosen", bound=Selection)


def in_blocks(rows: Tensor, blocks: Tensor) -> Tensor:
    """bool [m]: does a row (int64 [m], -1 for none) lie in one of the ascending ranges."""
    if blocks.numel() == 0:
        return torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    starts, ends = blocks[:, 0].contiguous().long(), blocks[:, 1].long()
    at = torch.searchsorted(starts, rows, right=True) - 1
    inside = rows < ends[at.clamp_min(0)]
    return inside & (at >= 0) & (rows >= 0)


class BlockShortlist(Generic[State, Chosen]):
    """Base of every policy: of a request's ``State`` and what ``select`` returns. Subclasses choose
    rows in ``select``; scoring and bookkeeping are here. ``size``: tokens that a draft step is
    meant to score, on average over the depth of a tree. ``log_mass``: what is added to priorities,
    never to a q that verification uses (``LOG_MASS``)."""

    name = "?"
    log_mass = LOG_MASS

    def __init__(self, head: DraftHead, size: int) -> None:
        self.head = head
        self.size = size

    def begin(self, prompt: Tensor, prefill: TargetOutput) -> State:
        """Request state. prompt int64 [m]; nothing of an earlier request enters it."""
        raise NotImplementedError

    def select(self, state: State, query: ShortlistQuery) -> Chosen:
        raise NotImplementedError

    def score(
        self,
        state: State,
        selection: Chosen,
        hidden: Tensor,
        k: int,
        whole: bool = False,
        temperature: float = 1.0,
    ) -> DraftHeadOutput:
        """Best k of the selection for hidden [w, d], fewer columns when the selection is smaller
        than k; with ``whole`` the distribution over the selection too, which no mass enters."""
        if not whole:
            log_q, ids = self._topk(state, selection, hidden, k, temperature)
            log_q = log_q + self.log_mass if self.log_mass else log_q
            return DraftHeadOutput(log_q, ids, selection.size, shared=selection.shared)
        self._settle(state, selection, hidden)
        log_probs, all_ids, _ = self.head.log_probs(
            hidden, selection.blocks, selection.size, temperature
        )
        log_q, columns = torch.topk(log_probs, min(k, log_probs.shape[1]), dim=-1)
        return DraftHeadOutput(
            log_q + self.log_mass,
            all_ids[columns],
            selection.size,
            log_probs,
            all_ids,
            selection.shared,
        )

    def _settle(self, state: State, selection: Chosen, hidden: Tensor) -> None:
        """Choose the rows of a selection that ``select`` left open."""

    def _topk(
        self, state: State, selection: Chosen, hidden: Tensor, k: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(log_q, ids) of the selection, whose rows are chosen afterwards at the latest."""
        log_q, ids, _ = self.head.topk(hidden, selection.blocks, k, temperature)
        return log_q, ids

    def contains(self, state: State, selection: Chosen, token_ids: Tensor) -> Tensor:
        """bool [m]: is a token (int64 [m]) in the selection."""
        blocks = selection.blocks
        return in_blocks(self.head.rows_of(token_ids).to(blocks.device), blocks)

    def settle(self, state: State, tokens: Tensor) -> None:
        """Nothing, for a shortlist that does not follow the text."""

    def observe(
        self, state: State, tree: DraftTree, output: TargetOutput, path: Tensor, settled: Tensor
    ) -> None:
        """Nothing, for a shortlist that does not follow the text."""
