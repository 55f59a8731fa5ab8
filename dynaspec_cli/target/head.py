"""The LM head: from features to logits, the argmax and the top k, over the whole vocabulary.

Products accumulate in float32 and logits are never rounded to a half type: in bf16, logits near 20 would be 0.125 apart
and ties common. Only ``logits`` writes the [n, V] matrix; the others walk over it in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PIECE_ELEMENTS = 1 << 24
"""Logits held at a time by ``topk`` and ``argmax`` (64 MiB in float32)."""

WEIGHT_PIECE = 1 << 14
"""Head rows widened to float32 at a time where no kernel accumulates in float32."""


@dataclass(frozen=True)
class LMHead:
    """``weight`` [V, d], ``bias`` [V] or None; logits are ``softcap * tanh((W h + b) * multiplier / softcap)``, or without the
    tanh where ``softcap`` is None."""

    weight: Tensor
    bias: Tensor | None = None
    multiplier: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [n, V] of normed ``hidden`` [n, d]."""
        logits = _product(hidden, self.weight)
        if self.bias is not None:
            logits += self.bias.float()
        if self.multiplier != 1.0:
            logits *= self.multiplier
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def argmax(self, hidden: Tensor) -> Tensor:
        """int64 [n]; the lowest id wins an exact tie."""
        return torch.cat([self.logits(piece).argmax(-1) for piece in self._pieces(hidden)])

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(log-probabilities float32 [n, k], ids int64 [n, k]), best first, ties to the lower id."""
        found = []
        for piece in self._pieces(hidden):
            logits = self.logits(piece)
            values, ids = torch.topk(logits, k, dim=-1)
            ids, order = ids.sort(-1)
            values, stable = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
            found.append((values - torch.logsumexp(logits, -1, keepdim=True), ids.gather(-1, stable)))
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def _pieces(self, hidden: Tensor) -> list[Tensor]:
        rows = max(1, PIECE_ELEMENTS // self.weight.shape[0])
        return list(hidden.split(rows))


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T`` with float32 accumulation and a float32 result."""
    if weight.dtype == torch.float32:
        return functional.linear(hidden.float(), weight)
    hidden = hidden.to(weight.dtype)
    if weight.is_cuda:
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    hidden = hidden.float()
    return torch.cat([functional.linear(hidden, rows.float()) for rows in weight.split(WEIGHT_PIECE)], -1)


class HeadOutput:
    """``protocols.TargetOutput`` of one pass: the features, and what the head makes of them on demand."""

    def __init__(self, features: Tensor, hidden: Tensor, head: LMHead) -> None:
        self.features = features
        self.hidden = hidden
        self._head = head

    def logits(self, rows: Tensor | None = None) -> Tensor:
        return self._head.logits(self.hidden if rows is None else self.hidden[rows])

    def argmax(self) -> Tensor:
        return self._head.argmax(self.hidden)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        return self._head.topk(self.hidden, k)
