"""Rows of a target pass that outlive its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptRows:
    """What is kept of m rows of a target pass when its output is let go: ``features`` [m, d] and
    ``taps`` [m, A * d] as in ``protocols.TargetOutput``, and ``leaders``, by row the best tokens
    int64 [k] where they are known. No logits: they can be formed again."""

    features: Tensor
    taps: Tensor | None
    leaders: Mapping[int, Tensor]

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def keep(self, rows: Tensor) -> KeptRows:
        """The given rows (int64 [m]), as ``TargetOutput.keep``."""
        place = {row: i for i, row in enumerate(rows.tolist())}
        return KeptRows(
            self.features[rows],
            None if self.taps is None else self.taps[rows],
            {place[row]: best for row, best in self.leaders.items() if row in place},
        )

    def first(self, count: int) -> KeptRows:
        """The first ``count`` rows, in memory of their own."""
        return KeptRows(
            self.features[:count].clone(),
            None if self.taps is None else self.taps[:count].clone(),
            {row: best for row, best in self.leaders.items() if row < count},
        )

    @staticmethod
    def joined(pieces: Sequence[KeptRows]) -> KeptRows:
        """The rows of all pieces, one after the other."""
        leaders: dict[int, Tensor] = {}
        start = 0
        for piece in pieces:
            leaders.update({start + row: best for row, best in piece.leaders.items()})
            start += len(piece)
        taps = [piece.taps for piece in pieces if piece.taps is not None]
        return KeptRows(
            torch.cat([piece.features for piece in pieces]),
            torch.cat(taps) if taps else None,
            leaders,
        )
