"""A shortlist: the tokens with the lowest ids. A byte-level BPE vocabulary numbers its tokens in
the order in which it merged them, so that they are roughly the most frequent."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.protocols import ShortlistQuery, TargetOutput
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.shortlist.head import DraftHead
from dynaspec_cli.shortlist.request import ShortlistRequest


class FirstTokens(BlockShortlist[None, Selection]):
    """Rows [0, size) of the head as it is. It remembers nothing of a request."""

    name = "first"

    def __init__(self, head: DraftHead, size: int) -> None:
        super().__init__(head, size)
        self._rows = torch.tensor([[0, size]], dtype=torch.int32, device=head.device)

    def begin(self, prompt: Tensor, prefill: TargetOutput) -> None:
        """There is nothing to remember."""

    def select(self, state: None, query: ShortlistQuery) -> Selection:
        return Selection(self._rows, self.size, shared=False)


def create(request: ShortlistRequest) -> FirstTokens:
    """What the entry point names: makes the shortlist for a target and a drafter's head."""
    head = request.draft_head()
    return FirstTokens(head, min(request.tokens(4096), head.num_rows))
