"""How a tree and a request's numbers get to the fixed places that a pass reads, and what comes
back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.target.static.arena import PARAMETERS, Arena, DrawsShape
from dynaspec_cli.unread_tree import UnreadTree


def lay_tree(arena: Arena, tree: DraftTree | UnreadTree, rows: int) -> None:
    """Into ``arena.tree``, for a pass of ``rows`` rows: from the host through page-locked memory,
    or from where it lies on the device. What stands behind the tree's rows stays."""
    n, place = tree.most_rows, arena.tree
    if isinstance(tree, UnreadTree):
        place.narrow(0, 0, 1 + n).copy_(tree.rows.narrow(0, 0, 1 + n))
        place.narrow(0, 1 + rows, n).copy_(tree.rows.narrow(0, 1 + n, n))
        return
    host, used = arena.pinned[0], 1 + rows + n
    host[0], host[1 : 1 + n] = n, tree.tokens
    host[1 + rows : used] = tree.parents
    place.narrow(0, 0, used).copy_(host[:used], non_blocking=True)


def lay_draws(arena: Arena, tree: DraftTree | UnreadTree, rows: int) -> DrawsShape | None:
    """Into ``arena.draws``; None where the tree's nodes are points."""
    if not isinstance(tree, UnreadTree) or tree.draws is None:
        return None
    given = tree.draws
    shape = DrawsShape(
        rows,
        given.row.numel(),
        given.widths,
        given.q.shape[1],
        given.most,
        given.replacement,
    )
    place = arena.draws_of(shape)
    for name in ("row", "column", "ids", "q"):
        getattr(place, name).copy_(getattr(given, name))
    place.law.narrow(0, 0, tree.most_rows).copy_(given.law)
    return shape


def lay_chance(arena: Arena, sampling: SamplingConfig, uniforms: Tensor) -> None:
    """Into ``arena.chance``: uniforms float64 [m] on the host."""
    c, host, used = sampling, arena.pinned[1], PARAMETERS + uniforms.numel()
    numbers = (c.temperature, c.top_k, c.top_p, c.min_p)
    host[:PARAMETERS] = torch.tensor(numbers, dtype=torch.float64)
    host[PARAMETERS:used] = uniforms
    arena.chance.narrow(0, 0, used).copy_(host[:used], non_blocking=True)


def fetch(arena: Arena, parts: Sequence[Tensor]) -> list[Tensor]:
    """int64 tensors of the device on the host, in one copy: the one wait of a step. They hold until
    the next one."""
    sizes = [part.numel() for part in parts]
    whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    host = arena.landing(whole.numel())
    host.copy_(whole, non_blocking=True)
    if whole.is_cuda and torch.cuda.is_available():
        torch.cuda.current_stream(whole.device).synchronize()
    return list(host.split(sizes))
