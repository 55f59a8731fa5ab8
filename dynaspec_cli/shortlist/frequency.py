"""Shortlists ranked by frequency: FR-Spec, VocabTrim and the position-aware PA-FR.

FR-Spec (arXiv 2502.14856) takes the N most frequent tokens of a corpus, VocabTrim (arXiv
2506.22694) those of text that the target generated, PA-FR (arXiv 2510.13847 v1) lets N fall with
the draft position. All are prefixes of one order, so the head holds the order's rows and a
selection is the range [0, N).
"""

from __future__ import annotations

from typing import Any

import torch

from dynaspec_cli.protocols import ShortlistQuery
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.shortlist.head import DraftHead


class FrequencyShortlist(BlockShortlist):
    """``head`` in order of frequency; ``budgets``: rows by draft position (the last one repeats);
    ``size``: their mean, where they differ."""

    def __init__(
        self,
        name: str,
        head: DraftHead,
        budgets: tuple[int, ...],
        mass: str = "none",
        size: int | None = None,
    ) -> None:
        super().__init__(head, budgets[0] if size is None else size, mass)
        self.name = name
        self._choices = [
            (torch.tensor([[0, n]], dtype=torch.int32, device=head.device), n)
            for n in (min(b, head.num_rows) for b in budgets)
        ]

    def select(self, state: Any, query: ShortlistQuery) -> Selection:
        blocks, size = self._choices[min(query.depth, len(self._choices)) - 1]
        return Selection(blocks, size, query.depth, shared=False)
