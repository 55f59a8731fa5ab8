"""What all shortlists share: a selection of row ranges, scored by the head, with the mass it is
believed to hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, ShortlistQuery, TargetOutput
from dynaspec_cli.shortlist.head import DraftHead
from dynaspec_cli.shortlist.mass import MassEstimate


@dataclass
class Selection:
    """Rows to score for one frontier: ``blocks`` int32 [b, 2] ascending and disjoint, ``size`` rows
    in all, ``depth`` of the nodes they propose. ``shared``: the frontier was asked which rows
    (``DraftHeadOutput``)."""

    blocks: Tensor
    size: int
    depth: int
    shared: bool = True


@dataclass
class RequestState:
    """State of one request. ``round`` holds the selections of the draft round under way, by
    depth."""

    mass: MassEstimate
    round: dict[int, Selection] = field(default_factory=dict)


def in_blocks(rows: Tensor, blocks: Tensor) -> Tensor:
    """bool [m]: does a row (int64 [m], -1 for none) lie in one of the ascending ranges."""
    if blocks.numel() == 0:
        return torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    starts, ends = blocks[:, 0].contiguous().long(), blocks[:, 1].long()
    at = torch.searchsorted(starts, rows, right=True) - 1
    inside = rows < ends[at.clamp_min(0)]
    return inside & (at >= 0) & (rows >= 0)


def union_size(blocks: Tensor) -> int:
    return int((blocks[:, 1] - blocks[:, 0]).sum())


class BlockShortlist:
    """Base of every policy. Subclasses choose rows in ``select``; scoring and bookkeeping are here.
    ``size``: tokens that a draft step is meant to score, on average over the depth of a tree.

    ``mass``: "none" | "constant" | "running", how the target's mass outside the shortlist enters
    ``log_q`` (shortlist/mass.py).
    """

    name = "?"

    def __init__(self, head: DraftHead, size: int, mass: str = "none") -> None:
        self.head = head
        self.size = size
        self.mass = mass

    def begin(self, prompt: Tensor, prefill: TargetOutput) -> Any:
        """Request state. prompt int64 [m]; nothing of an earlier request enters it."""
        return RequestState(MassEstimate(self.mass))

    def select(self, state: Any, query: ShortlistQuery) -> Selection:
        raise NotImplementedError

    def score(
        self,
        state: Any,
        selection: Selection,
        hidden: Tensor,
        k: int,
        whole: bool = False,
        temperature: float = 1.0,
    ) -> DraftHeadOutput:
        """Best k of the selection for hidden [w, d], fewer columns when the selection is smaller
        than k; with ``whole`` the distribution over the selection too, which no mass enters."""
        state.round[selection.depth] = selection
        log_mass = self.log_mass(state, selection)
        if not whole:
            log_q, ids = self._topk(state, selection, hidden, k, temperature)
            log_q = log_q + log_mass if log_mass else log_q
            return DraftHeadOutput(log_q, ids, selection.size, shared=selection.shared)
        self._settle(state, selection, hidden)
        log_probs, all_ids, _ = self.head.log_probs(
            hidden, selection.blocks, selection.size, temperature
        )
        log_q, columns = torch.topk(log_probs, min(k, log_probs.shape[1]), dim=-1)
        return DraftHeadOutput(
            log_q + log_mass,
            all_ids[columns],
            selection.size,
            log_probs,
            all_ids,
            selection.shared,
        )

    def _settle(self, state: Any, selection: Any, hidden: Tensor) -> None:
        """Choose the rows of a selection that ``select`` left open."""

    def _topk(
        self, state: Any, selection: Any, hidden: Tensor, k: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(log_q, ids) of the selection, whose rows are chosen afterwards at the latest."""
        log_q, ids, _ = self.head.topk(hidden, selection.blocks, k, temperature)
        return log_q, ids

    def log_mass(self, state: Any, selection: Selection) -> float:
        """Log of the target's mass that the selection is believed to hold; add it to priorities,
        never to a q that verification uses."""
        return float(state.mass.log_mass(selection.depth))

    def contains(self, state: Any, selection: Selection, token_ids: Tensor) -> Tensor:
        """bool [m]: is a token (int64 [m]) in the selection."""
        return in_blocks(self.head.rows_of(token_ids), selection.blocks)

    def settle(self, state: Any, tokens: Tensor) -> None:
        """Nothing, for a shortlist that does not follow the text."""

    def observe(
        self, state: Any, tree: DraftTree, output: TargetOutput, path: Tensor, settled: Tensor
    ) -> None:
        """Update the running mass from the accepted path; ends the draft round."""
        if self.mass == "running" and state.round:
            choices = output.argmax(path)
            for i in range(choices.numel()):
                selection = state.round.get(i + 1)
                if selection is None:
                    break
                hit = bool(self.contains(state, selection, choices[i : i + 1])[0])
                state.mass.observe(i + 1, hit)
        state.round.clear()
