"""What a target pass yields, with the LM head applied to the rows that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from dynaspec_cli.protocols import KeptRows
from dynaspec_cli.target.head import leaders

KEPT_LEADERS = 4
"""Best tokens a row that a pass over the head keeps: it costs the same for one leader as for a few,
and context shortlists ask for the others after verification."""


class OutputHead(Protocol):
    """What an output asks of its LM head (target/head.py) of ``rows`` tokens."""

    @property
    def rows(self) -> int: ...

    @property
    def cheap_rows(self) -> int | None: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def leaders(self, hidden: Tensor, k: int) -> Tensor: ...

    def at(self, hidden: Tensor, ids: Tensor) -> Tensor: ...


class HeadOutput:
    """``protocols.TargetOutput`` of one pass: ``features`` [n, d], ``hidden`` [n, d] after the
    final norm, and what the head makes of them on demand. A row is read once. Row numbers are
    tensors of the host. ``taps`` [n, A * d] or None. ``known``: leaders of rows that were read
    before; ``ranked`` int64 [n, k]: those of all rows, which cost nothing but count as read only
    once they are asked for: a sampled walk's shortlist would learn from other rows else."""

    def __init__(
        self,
        features: Tensor,
        hidden: Tensor,
        head: OutputHead,
        taps: Tensor | None = None,
        known: Mapping[int, Tensor] | None = None,
        ranked: Tensor | None = None,
    ) -> None:
        self.features = features
        self.hidden = hidden
        self.taps = taps
        self.cheap_rows = head.cheap_rows
        self._head = head
        self._logits: dict[int, Tensor] = {}
        self._leaders: dict[int, Tensor] = dict(known or {})
        self._ranked = ranked
        self._whole: Tensor | None = None

    @property
    def rows_ranked(self) -> Tensor | None:
        if self._whole is not None:
            return None
        return torch.tensor(sorted(self._leaders), dtype=torch.int64)

    @torch.inference_mode()
    def logits(self, rows: Tensor | None = None) -> Tensor:
        logits = self._head.logits(self.hidden if rows is None else self.hidden[rows])
        read = range(logits.shape[0]) if rows is None else rows.tolist()
        self._logits.update(zip(read, logits, strict=True))
        return logits

    @torch.inference_mode()
    def logits_at(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        return self._head.at(self.hidden[rows], token_ids)

    @torch.inference_mode()
    def argmax(self, rows: Tensor | None = None) -> Tensor:
        return self.leaders(1, rows)[:, 0].contiguous()

    @torch.inference_mode()
    def leaders(self, k: int, rows: Tensor | None = None) -> Tensor:
        wanted = min(max(k, KEPT_LEADERS), self._head.rows)
        if self._ranked is not None and self._ranked.shape[1] >= k and self._whole is None:
            if rows is None:
                self._whole = self._ranked
            else:
                self._leaders.update({row: self._ranked[row] for row in rows.tolist()})
        if rows is None and self._whole is None and not self._logits:
            self._whole = self._head.leaders(self.hidden, wanted)
        if self._whole is not None and self._whole.shape[1] >= k:
            return (self._whole if rows is None else self._whole[rows])[:, :k]
        read = range(self.hidden.shape[0]) if rows is None else rows.tolist()
        self._read(list(read), k, wanted)
        return torch.stack([self._leaders[row][:k] for row in read])

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> KeptRows:
        known = self._leaders
        best = {i: known[row] for i, row in enumerate(rows.tolist()) if row in known}
        if self._whole is not None:
            best = dict(enumerate(self._whole[rows]))
        return KeptRows(self.features[rows], None if self.taps is None else self.taps[rows], best)

    def _read(self, rows: list[int], k: int, wanted: int) -> None:
        """Leaders of the rows that lack them, from their logits where these were formed."""
        lacking = [
            row for row in rows if row not in self._leaders or self._leaders[row].numel() < k
        ]
        formed = [row for row in lacking if row in self._logits]
        fresh = [row for row in lacking if row not in self._logits]
        if formed:
            logits = torch.stack([self._logits[row] for row in formed])
            self._leaders.update(zip(formed, leaders(logits, wanted), strict=True))
        if fresh:
            found = self._head.leaders(self.hidden[torch.tensor(fresh)], wanted)
            self._leaders.update(zip(fresh, found, strict=True))
