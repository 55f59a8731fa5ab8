"""The whole vocabulary: the reference every shortlist is measured against."""

from __future__ import annotations

from typing import Any

import torch

from dynaspec_cli.protocols import ShortlistQuery
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.shortlist.head import DraftHead


class FullShortlist(BlockShortlist):
    """Scores every row of the head."""

    name = "full"

    def __init__(self, head: DraftHead) -> None:
        super().__init__(head, head.num_rows)
        self._blocks = torch.tensor([[0, head.num_rows]], dtype=torch.int32, device=head.device)

    def select(self, state: Any, query: ShortlistQuery) -> Selection:
        return Selection(self._blocks, self.head.num_rows, query.depth, shared=False)
