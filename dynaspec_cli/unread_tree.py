"""Draft trees where a device grew them, which the host has not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dynaspec_cli.protocols import DraftTree


@dataclass(frozen=True)
class UnreadDraws:
    """How the children of an ``UnreadTree`` of n rows were drawn. ``row`` int64 [t]: of each draw
    the tree row that holds its token, -1 for no draw; those below one node stand in their order;
    with replacement several may name one row. ``column`` int64 [t] of q. ``law`` int64 [n]: the
    row of q that the children of a tree row were drawn from, -1 for none.

    ``ids`` int64 [L, S], distinct: the tokens of each draft step's shortlist, -1 for padding; ``q``
    float32 [f, S], ``widths`` rows of it for each draft step, one step after the other. ``most``:
    draws below a row at most. ``replacement`` and ``traversal`` as in ``SampledDrafts``.
    """

    row: Tensor
    column: Tensor
    law: Tensor
    ids: Tensor
    q: Tensor
    widths: tuple[int, ...]
    most: int
    replacement: bool
    traversal: bool


@dataclass(frozen=True)
class UnreadTree:
    """``rows`` int64 [1 + 2 n] on the device: how many rows there are, n at most, their tokens, and
    their parents; what stands behind the last row means nothing. ``draws``: how children were
    drawn; None: they are points.

    ``report`` int64 [m] on the device: what the host has to know; ``read`` takes it there, once,
    and makes the tree of it.
    """

    rows: Tensor
    draws: UnreadDraws | None
    report: Tensor
    read: Callable[[Tensor], DraftTree]

    @property
    def most_rows(self) -> int:
        """Rows that it can have, the root included."""
        return (self.rows.numel() - 1) // 2

    def landed(self) -> DraftTree:
        """The tree on the host, which waits for it."""
        return self.read(to_host(self.report))


def to_host(x: Tensor) -> Tensor:
    """A copy on the host."""
    here = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    here.copy_(x, non_blocking=True)
    if x.is_cuda:
        torch.cuda.current_stream(x.device).synchronize()
    return here
