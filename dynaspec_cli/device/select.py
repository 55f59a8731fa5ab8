"""Selections with one order on every device: by value, a tie to the lower index."""

from __future__ import annotations

import torch
from torch import Tensor


def best(values: Tensor, count: int) -> Tensor:
    """Indices int64 [count] of the largest of values [n], best first; n >= count. The sort is
    stable, which ``torch.topk`` is not."""
    return torch.sort(values, descending=True, stable=True).indices[:count]


def ranks(values: Tensor) -> Tensor:
    """int64 [n]: the place of each of values [n] in descending order, a tie to the lower index."""
    order = torch.sort(values, descending=True, stable=True).indices
    places = torch.arange(values.shape[0], device=values.device)
    return torch.empty_like(order).scatter_(0, order, places)


def up_to_first_false(mask: Tensor) -> Tensor:
    """bool [w, k]: the true entries of each row before its first false one."""
    return mask.to(torch.int8).cummin(1).values.bool()


def compacted(mask: Tensor, values: Tensor, size: int, padding: int = -1) -> Tensor:
    """[size]: values [n] where mask bool [n] is true, in order, then ``padding``; what there is
    beyond ``size`` is dropped."""
    place = torch.cumsum(mask, 0) - 1
    place = torch.where(mask & (place < size), place, size)
    out = values.new_full((size + 1,), padding)
    return out.scatter(0, place, values)[:size]
