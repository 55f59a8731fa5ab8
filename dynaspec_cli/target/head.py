"""The LM head: from normed features to logits, the argmax and the top k, over the whole vocabulary.

Products accumulate in float32 and logits are never rounded to a half type: in bf16, logits near 20
would be 0.125 apart and ties common. On CPU the compiled ops stream the head and do not write the
[n, V] matrix for an argmax or a top k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.ops import NotFiniteLogits, shortlist_topk
from dynaspec_cli.ops.product import own_dtype, product
from dynaspec_cli.weights.weight import Weight

PIECE_ELEMENTS = 1 << 24
"""Logits held at a time where the matrix is written (64 MiB in float32)."""

CHEAP_ROWS = 10
"""Rows that the CPU multiplies while it waits for the head's weights
(docs/internals/performance.md)."""

STRIPE = 512
"""Adjacent logits that are first reduced to their maximum."""

PIECE_ROWS = 64
"""Rows handed to the streaming kernel at a time."""

WEIGHT_PIECE = 1 << 14
"""Head rows widened to float32 at a time where no kernel accumulates in float32."""


@dataclass(frozen=True)
class LMHead:
    """``weight`` [V, d], ``bias`` [V] or None; logits are ``softcap * tanh((W h + b) * multiplier /
    softcap)``, or without the tanh where ``softcap`` is None. ``hidden`` is [n, d] after the final
    norm."""

    weight: Weight
    bias: Tensor | None = None
    multiplier: float = 1.0
    softcap: float | None = None

    @property
    def rows(self) -> int:
        """Tokens that have a logit."""
        return self.weight.rows

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [n, V]."""
        return self._finish(_product(hidden, self.weight), self.bias)

    def argmax(self, hidden: Tensor) -> Tensor:
        """int64 [n]; the lowest id wins an exact tie."""
        if self._streams:
            return self._streamed(hidden, 1)[:, 0]
        found = []
        for piece in self._pieces(hidden):
            logits = self._exact_leaders(piece, 1)
            found.append(_finite(logits, logits.argmax(-1, keepdim=True))[:, 0])
        return torch.cat(found)

    def leaders(self, hidden: Tensor, k: int) -> Tensor:
        """int64 [n, k]: the tokens of the k largest logits, best first."""
        if self._streams:
            return self._streamed(hidden, k)
        found = [leaders(self._exact_leaders(piece, k), k) for piece in self._pieces(hidden)]
        return torch.cat(found)

    def ranked(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(logits float32 [n, k], tokens int64 [n, k]) of the k largest logits, best first: for a
        comparison with those of other rows. NaN ranks highest."""
        found = [ranked(self._exact_leaders(piece, k), k) for piece in self._pieces(hidden)]
        values, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
        return values, ids

    def at(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Float32 [m]: the logit of token ``ids[i]`` (int64 [m]) for row ``hidden[i]``, up to
        rounding; for what only has to be about right."""
        logits = (hidden.float() * self.weight.embed(ids)).sum(-1)
        return self._finish(logits, None if self.bias is None else self.bias[ids])

    @property
    def cheap_rows(self) -> int | None:
        """Rows that cost about what one does, the weights' way from memory; None: all."""
        return CHEAP_ROWS if self.weight.compiled else None

    @property
    def _streams(self) -> bool:
        """A cap is left to the written matrix, since its rounding can make ties that decide an
        argmax."""
        plain = self.bias is None and self.softcap is None and self.multiplier > 0
        return plain and self.weight.compiled

    def _streamed(self, hidden: Tensor, k: int) -> Tensor:
        weight, temperature = self.weight, 1.0 / self.multiplier
        whole = torch.tensor([[0, weight.rows]], dtype=torch.int32)
        ids = torch.empty(0, dtype=torch.int32)
        try:
            found = [
                shortlist_topk(
                    piece, weight.data, weight.scale, ids, whole, k, temperature, weight.code
                )[1]
                for piece in hidden.float().split(PIECE_ROWS)
            ]
        except NotFiniteLogits as error:
            raise NotFiniteError.of_target() from error
        return torch.cat(found)

    def _exact_leaders(self, hidden: Tensor, k: int) -> Tensor:
        """Float32 [n, V] whose k largest of each row are exact; the others may carry a half type's
        rounding."""
        weight = self.weight.data
        accumulates = weight.dtype == torch.float32 or own_dtype(weight) or self.weight.compiled
        if accumulates or self.bias is not None or self.multiplier <= 0:
            return self.logits(hidden)
        hidden = hidden.to(weight.dtype)
        logits = functional.linear(hidden, weight).float()
        slack = logits.abs() * torch.finfo(weight.dtype).eps
        bar = torch.topk(logits - slack, k, dim=-1).values[:, -1:]
        for row, close in enumerate(logits + slack >= bar):
            ids = close.nonzero().squeeze(1)
            logits[row, ids] = weight[ids].float() @ hidden[row].float()
        return self._finish(logits, self.bias)

    def _finish(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            logits = logits + bias.float()
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        if self.softcap is not None:
            logits = (logits / self.softcap).tanh_().mul_(self.softcap)
        return logits

    def _pieces(self, hidden: Tensor) -> list[Tensor]:
        return list(hidden.split(max(1, PIECE_ELEMENTS // max(1, self.rows))))


def _finite(logits: Tensor, best: Tensor) -> Tensor:
    """``best`` int64 [n, k], the ids of the largest logits [n, V]; NaN ranks highest, so the first
    of a row betrays it. Not on a GPU, where looking would stop the step to wait for it."""
    if logits.device.type == "cpu" and not logits.gather(1, best[:, :1]).isfinite().all():
        raise NotFiniteError.of_target()
    return best


def leaders(logits: Tensor, k: int) -> Tensor:
    """int64 [n, k]: ids of the k largest logits [n, V], best first, among equals the lower id
    first. Raises DynaSpecError for NaN (see ``_finite``)."""
    return _finite(logits, ranked(logits, k)[1])


def ranked(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values float32 [n, k], ids int64 [n, k]) as ``leaders`` has them, unchecked: nothing is read
    back. NaN ranks highest."""
    values, ids = _largest(logits, k)
    ids, order = ids.sort(-1)
    values, stable = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, stable)


def _largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``torch.topk`` in one pass over the memory: the k largest of a row lie in those k stripes
    whose maxima are largest (and the rest of the row that fills no stripe)."""
    stripes = logits.shape[1] // STRIPE
    if stripes <= k:
        return torch.topk(logits, k, dim=-1)
    striped = logits[:, : stripes * STRIPE].unflatten(1, (stripes, STRIPE))
    near = torch.topk(striped.amax(-1), k, dim=-1).indices
    ids = (near[:, :, None] * STRIPE + torch.arange(STRIPE, device=logits.device)).flatten(1)
    rest = torch.arange(stripes * STRIPE, logits.shape[1], device=logits.device)
    ids = torch.cat([ids, rest.expand(logits.shape[0], -1)], 1)
    values, found = torch.topk(logits.gather(1, ids), k, dim=-1)
    return values, ids.gather(1, found)


def _product(hidden: Tensor, head: Weight) -> Tensor:
    """``hidden @ weight.T`` with float32 accumulation and a float32 result."""
    if head.compiled:
        return head.linear(hidden.float())
    weight = head.data
    if weight.dtype == torch.float32:
        return functional.linear(hidden.float(), weight)
    if own_dtype(weight):
        return product(hidden, weight)
    hidden = hidden.to(weight.dtype).float()
    return torch.cat(
        [functional.linear(hidden, rows.float()) for rows in weight.split(WEIGHT_PIECE)], -1
    )
