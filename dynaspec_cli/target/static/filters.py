"""The filters of a distribution in fixed shapes (``ops.filtered_softmax``)."""

from __future__ import annotations

import torch
from torch import Tensor


def filtered(scaled: Tensor, parameters: Tensor) -> Tensor:
    """p float32 [n, V] of logits over the temperature float32 [n, V]: top-k (ties with the k-th are
    kept), top-p (of tied tokens at the border the higher ids), min-p. ``parameters`` float64 [3]:
    top-k (0: all), top-p, min-p, on the device.

    One stable sort serves both: of the ascending order, the k-th largest is a border, and top-p a
    share of the sums from below.
    """
    vocab = scaled.shape[1]
    top_k, top_p, min_p = parameters[:1].long(), parameters[1:2], parameters[2:]
    values, order = scaled.sort(dim=-1, stable=True)
    border = torch.where(top_k > 0, vocab - top_k, 0).clamp(0, vocab - 1)
    kept = scaled >= values.index_select(1, border)
    p = torch.softmax(scaled.masked_fill(~kept, -torch.inf), -1, dtype=torch.float64)
    below = p.gather(1, order).cumsum(-1)
    # Nothing is left out at top-p 1, and never the most probable token.
    last = torch.arange(vocab, device=scaled.device) == vocab - 1
    heavy = (below > 1.0 - top_p) | last | (top_p >= 1.0)
    kept = kept & torch.zeros_like(kept).scatter(1, order, heavy)
    rest = torch.where(kept, p, 0.0)
    kept = kept & (p >= min_p * rest.amax(-1, keepdim=True))
    return torch.softmax(scaled.masked_fill(~kept, -torch.inf), -1)
