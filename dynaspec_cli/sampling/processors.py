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
from dynaspec_cli.ops.draw import filtered_softmax


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
    c = config
    return filtered_softmax(logits, c.temperature, c.top_k, c.top_p, c.min_p)


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
