"""The one function that turns logits into probabilities, for plain and speculative decoding alike.

Filters have the order and the meaning of transformers' logits processors: temperature, top-k (ties
with the k-th are kept), top-p, min-p (relative to the most probable token that is left). Of tied
tokens at the border top-p keeps the higher ids: transformers leaves the choice to an unstable sort,
here it is the one that a stable ascending sort makes, so that a distribution is a function of its
logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError, NotFiniteError


def probabilities(
    logits: Tensor, config: SamplingConfig, name: str = "the target's logits"
) -> Tensor:
    """The distribution p that tokens are drawn from.

    logits float32 [n, V] -> p float32 [n, V] (float64 stays float64), each row summing to 1 up to
    rounding. Greedy (temperature 0) gives a one-hot row; of tied tokens the lowest id. NaN or
    infinite logits raise DynaSpecError, which calls them ``name``.
    """
    _check(logits, name)
    if config.greedy:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(1, best, 1.0)
    scaled = logits if config.temperature == 1.0 else logits / config.temperature
    if not (config.top_k or config.top_p < 1.0 or config.min_p > 0.0):
        return torch.softmax(scaled, -1)
    p = torch.zeros_like(scaled)
    for row in range(scaled.shape[0]):
        ids, kept = _filtered(scaled[row], config)
        p[row, ids] = kept
    return p


def _check(logits: Tensor, name: str) -> None:
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.float64):
        raise DynaSpecError(
            f"{name}: expected float32 [n, V], got {logits.dtype} {list(logits.shape)}"
        )
    if not logits.numel():
        return
    low, high = logits.aminmax()  # one pass; both are NaN where any logit is
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        raise NotFiniteError.of_target(name)


def _filtered(row: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """(ids int64 [m] ascending, p [m]) of the tokens that the filters leave of scaled logits [V].

    Only tokens that can survive are sorted: top-k needs a partial selection, and top-p alone the
    few tokens that hold its mass.
    """
    if 0 < config.top_k < row.numel():
        ids = (row >= torch.topk(row, config.top_k).values[-1]).nonzero().squeeze(1)
        p = torch.softmax(row[ids], -1, dtype=torch.float64)
    elif config.top_p == 1.0 and config.min_p > 0.0:
        border = float(row.max()) + math.log(config.min_p)  # decided exactly below
        ids = (row >= border - 1e-3).nonzero().squeeze(1)
        p = torch.softmax(row[ids], -1, dtype=torch.float64)
    else:
        p = torch.softmax(row, -1, dtype=torch.float64)
        ids = _heavy(p, config.top_p)
        p = p[ids]
    if config.top_p < 1.0:
        order = torch.sort(row[ids], stable=True).indices
        # Summed from the least probable token of the vocabulary upwards; those left out come first.
        below = torch.cumsum(p[order], 0) + max(0.0, 1.0 - float(p.sum()))
        removed = below <= 1.0 - config.top_p
        removed[-1] = False
        keep = torch.sort(order[~removed]).values
        ids, p = ids[keep], p[keep]
    if config.min_p > 0.0:
        ids = ids[p >= config.min_p * p.max()]
    return ids, torch.softmax(row[ids], -1)


def _heavy(p: Tensor, top_p: float) -> Tensor:
    """Ids, ascending, of tokens that hold more than ``top_p`` of p float64 [V] together, none left
    out being more probable than one taken. All ids where no few tokens do."""
    floor = float(p.max())
    while top_p < 1.0 and floor > 1e-6 / p.numel():
        floor *= 2.0**-7
        ids = (p > floor).nonzero().squeeze(1)
        if float(p[ids].sum()) > top_p + 1e-9:
            return ids
    return torch.arange(p.numel(), device=p.device)
