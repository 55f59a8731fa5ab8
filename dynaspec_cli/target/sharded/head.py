"""The LM head by slices: rank r holds the rows [r * size, (r + 1) * size) of the vocabulary.

Greedy decoding gathers (value, id) of each slice's best tokens, k numbers a rank and row. Sampling
gathers the rows' logits: top-k with its ties, top-p and the residuals of a rejected draft are
functions of whole rows, and the one function that makes probabilities of logits stays one. The
slices' order is that of the ids, so that of tied tokens the lowest id wins as it does elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.sharded.ranks import Ranks
from dynaspec_cli.weights.weight import Weight, dense

Told = Callable[..., AbstractContextManager[None]]
"""(operation, arguments): within it the other ranks do the same."""


def slice_bounds(rows: int, rank: int, world: int) -> tuple[int, int]:
    """Of the rows that ``rank`` holds: equal slices, rounded up, so that the last may be short."""
    size = -(-rows // world)
    return min(rank * size, rows), min((rank + 1) * size, rows)


class ShardedHead:
    """``target.head.LMHead`` of ``rows`` rows, of which ``local`` holds this rank's. Every method
    is called on all ranks; its result is rank 0's. ``hidden`` [n, d] counts at rank 0 and is
    written to elsewhere."""

    def __init__(self, local: LMHead, rows: int, ranks: Ranks, told: Told) -> None:
        self.rows = rows
        self.cheap_rows = local.cheap_rows
        self._local, self._ranks, self._told = local, ranks, told
        self._begin, self._end = slice_bounds(rows, ranks.rank, ranks.world)
        # What this slice lacks to be as large as the first, for a gather of equal parts.
        self._lacking = slice_bounds(rows, 0, ranks.world)[1] - self._held
        self._whole: Weight | None = None

    @property
    def weight(self) -> Weight:
        """All rows: what a drafter without a head of its own reads. Gathered once, at rank 0."""
        if self._whole is None:
            with self._told("whole"):
                rows = self._local.weight.data
                found = self._ranks.gather(pad(rows, (0, 0, 0, self._lacking)))
            whole = dense(torch.cat(found)[: self.rows] if found else rows)
            self._whole = whole if found else None
            return whole
        return self._whole

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [n, V]."""
        with self._told("logits", rows=hidden.shape[0]):
            hidden = self._ranks.spread(self._ready(hidden))
            local = self._local.logits(hidden) if self._held else self._nothing(hidden)
            found = self._ranks.gather(pad(local, (0, self._lacking)))
        return torch.cat(found, 1)[:, : self.rows] if found else local

    def leaders(self, hidden: Tensor, k: int) -> Tensor:
        """int64 [n, k]: the tokens of the k largest logits, best first."""
        with self._told("leaders", rows=hidden.shape[0], k=k):
            hidden = self._ranks.spread(self._ready(hidden))
            held = min(k, self._held)
            nothing = self._nothing(hidden)
            values, ids = self._local.ranked(hidden, held) if held else (nothing, nothing.long())
            values = pad(values, (0, k - held), value=-torch.inf)
            scores = self._ranks.gather(values)
            ids = pad(ids + self._begin, (0, k - held))
            tokens = self._ranks.gather(ids)
        if not scores:
            return ids
        best = torch.cat(scores, 1).sort(dim=-1, descending=True, stable=True)
        first = best.values[:, :1]
        if first.device.type == "cpu" and not first.isfinite().all():  # NaN ranks highest
            raise NotFiniteError.of_target()
        return torch.cat(tokens, 1).gather(1, best.indices[:, :k])

    def at(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Float32 [m]: the logit of token ``ids[i]`` (int64 [m]) for row ``hidden[i]``."""
        with self._told("at", ids=ids.tolist()):
            hidden = self._ranks.spread(self._ready(hidden))
            here = (ids >= self._begin) & (ids < self._end)
            found = torch.zeros(ids.numel(), device=hidden.device)
            found[here] = self._local.at(hidden[here], ids[here] - self._begin)
            return self._ranks.sum(found)

    @property
    def _held(self) -> int:
        """Rows of this slice; none at the last ranks of a tiny vocabulary."""
        return self._end - self._begin

    def _nothing(self, hidden: Tensor) -> Tensor:
        return torch.empty(hidden.shape[0], 0, device=hidden.device)

    def _ready(self, hidden: Tensor) -> Tensor:
        return hidden.to(self._local.weight.data.dtype)
