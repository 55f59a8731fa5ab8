"""The tokens of the context on the device: what ``shortlist.context.ContextTokens`` is on the host.

A stamp a row of the head says when it was last mentioned. The set is the ``capacity`` rows of the
newest stamps: those seen since a clock that moves on with what is forgotten. The members' list
finds that clock without a look at the whole vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.device.select import best


class Context(NamedTuple):
    """``seen`` int64 [R + 1]: stamps, 0 for never; the last is for padding. ``rows`` int64
    [capacity]: the set, in no order, -1 where it is not full. ``clock`` int64 []."""

    seen: Tensor
    rows: Tensor
    clock: Tensor


def empty(num_rows: int, capacity: int, device: torch.device) -> Context:
    """At most ``capacity`` of ``num_rows`` rows."""
    seen = torch.zeros(num_rows + 1, dtype=torch.int64, device=device)
    rows = torch.full((min(capacity, num_rows),), -1, device=device)
    return Context(seen, rows, seen[0].clone())


def add(context: Context, rows: Tensor) -> Context:
    """``rows`` int64 [m] were mentioned, later ones more recently; -1 is padding. The least
    recently mentioned beyond the capacity are forgotten."""
    capacity, m = context.rows.shape[0], rows.shape[0]
    if capacity == 0:
        return context
    nowhere = context.seen.shape[0] - 1
    stamps = context.clock + 1 + torch.arange(m, device=rows.device)
    at = torch.where(rows < 0, nowhere, rows)
    seen = context.seen.scatter_reduce(0, at, stamps, "amax")
    old = context.rows
    stamp = seen[torch.where(old < 0, nowhere, old)]
    kept = (old >= 0) & (stamp <= context.clock)  # else it was mentioned again
    age = torch.cat([stamp.where(kept, 0), stamps.where((rows >= 0) & (seen[at] == stamps), 0)])
    newest = best(age, capacity)
    members = torch.cat([old, rows])[newest].where(age[newest] > 0, -1)
    return Context(seen, members, context.clock + m)


def holds(context: Context) -> Tensor:
    """bool [R]: is a row in the set."""
    if context.rows.shape[0] == 0:
        return torch.zeros_like(context.seen[:-1], dtype=torch.bool)
    nowhere = context.seen.shape[0] - 1
    empty_ = context.rows < 0
    stamps = context.seen[torch.where(empty_, nowhere, context.rows)].where(~empty_, 1)
    return context.seen[:-1] >= stamps.amin()
