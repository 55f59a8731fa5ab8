"""The whole vocabulary: the reference every shortlist is measured against."""

from __future__ import annotations

import torch

from dynaspec_cli.errors import UsageError
from dynaspec_cli.protocols import ShortlistQuery, TargetOutput
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.shortlist.head import DraftHead
from dynaspec_cli.shortlist.request import ShortlistRequest


class FullShortlist(BlockShortlist[None, Selection]):
    """Scores every row of the head."""

    name = "full"
    log_mass = 0.0

    def __init__(self, head: DraftHead) -> None:
        super().__init__(head, head.num_rows)
        self._blocks = torch.tensor([[0, head.num_rows]], dtype=torch.int32, device=head.device)

    def begin(self, prompt: torch.Tensor, prefill: TargetOutput) -> None:
        """There is nothing to remember."""

    def select(self, state: None, query: ShortlistQuery) -> Selection:
        return Selection(self._blocks, self.head.num_rows, shared=False)


def create(request: ShortlistRequest) -> FullShortlist:
    if request.size is not None and request.size != request.target.vocab_size:
        raise UsageError("--shortlist-size: full has no size; choose another --shortlist")
    return FullShortlist(request.draft_head())
