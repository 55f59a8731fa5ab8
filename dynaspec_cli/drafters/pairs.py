"""What drafters share that read pairs: a state of the target at position t and the token at t + 1.

Pair t has position t in the drafter's own KV cache. Committed pairs carry what the target computed;
behind them lie the temporary rows of the tree under construction, which carry what the drafter
predicted, see each other as the tree says, and are dropped by the next read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

MAX_TREE_ROWS = 1024
"""Temporary rows that have room without growing."""
EXTEND_ROWS = 256
"""Pairs a pass when a prompt is read; bounds the causal mask."""


@dataclass(frozen=True)
class Rows:
    """The rows of one pass. ``own`` int64 [n]: their positions; ``positions`` int64 [t] and
    ``mask`` bool [n, t]: of the temporary rows up to them (of a committed pass: of the rows
    themselves), which they stand at the end of; ``committed``: rows before those, all of which are
    seen."""

    own: Tensor
    positions: Tensor
    mask: Tensor
    committed: int


@dataclass
class PairCache:
    """``k``, ``v``: a tensor [rows, kv_heads, head_dim] a layer; ``length``: committed pairs;
    ``tree_*``: the temporary rows behind them."""

    k: list[Tensor]
    v: list[Tensor]
    length: int = 0
    tree_rows: int = 0
    tree_mask: Tensor | None = None
    tree_positions: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.k[0].device

    def begin_read(self, pairs: int) -> Rows:
        """Rows of ``pairs`` further committed pairs; temporary rows are dropped."""
        if self.tree_mask is not None:
            self.tree_mask[: self.tree_rows, : self.tree_rows] = False
        self.tree_rows = 0
        self._make_room(pairs)
        positions = torch.arange(self.length, self.length + pairs, device=self.device)
        mask = torch.ones(pairs, pairs, dtype=torch.bool, device=self.device).tril_()
        return Rows(positions, positions, mask, self.length)

    def end_read(self, pairs: int) -> None:
        """Their keys and values stand."""
        self.length += pairs

    def rewind(self, pairs: int) -> None:
        """Keep the first ``pairs`` committed pairs at most; the caches grow when they must."""
        self.length = min(self.length, pairs)
        self.tree_rows, self.tree_mask = 0, None

    def begin_step(self, parents: Tensor) -> Rows:
        """Temporary rows below ``parents`` int64 [w] (as in ``Frontier``)."""
        start = self.tree_rows
        end = start + parents.numel()
        parents = parents.to(self.device)
        mask, positions = self._tree_buffers(end)
        if start == 0:
            positions[:end] = self.length
        else:
            positions[start:end] = positions[parents] + 1
            mask[start:end, :end] = mask[parents, :end]
        rows = torch.arange(start, end, device=self.device)
        mask[rows, rows] = True
        self.tree_rows = end
        seen = mask[start:end, :end].contiguous()
        return Rows(positions[start:end], positions[:end], seen, self.length)

    def _tree_buffers(self, rows: int) -> tuple[Tensor, Tensor]:
        """Mask (clear beyond the rows there are) and positions of temporary rows, with room for
        ``rows`` of them here and in the cache: wide and deep trees may have more than
        ``MAX_TREE_ROWS``."""
        mask, positions = self.tree_mask, self.tree_positions
        if mask is None or positions is None:
            size = MAX_TREE_ROWS
            mask = torch.zeros(size, size, dtype=torch.bool, device=self.device)
            positions = torch.empty(size, dtype=torch.int64, device=self.device)
        if rows > mask.shape[0]:
            more = max(rows - mask.shape[0], mask.shape[0])
            mask, positions = pad(mask, (0, more, 0, more)), pad(positions, (0, more))
        self._make_room(rows)
        self.tree_mask, self.tree_positions = mask, positions
        return mask, positions

    def _make_room(self, rows: int) -> None:
        if (missing := self.length + rows - self.k[0].shape[0]) > 0:
            more = max(missing, MAX_TREE_ROWS)
            self.k = [pad(cache, (0, 0, 0, 0, 0, more)) for cache in self.k]
            self.v = [pad(cache, (0, 0, 0, 0, 0, more)) for cache in self.v]


def empty_caches(
    layers: int, rows: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """One cache a layer, of ``rows`` pairs and a tree. A float16 model keeps float32 ones."""
    kind = torch.float32 if dtype == torch.float16 else dtype
    shape = (rows + MAX_TREE_ROWS, kv_heads, head_dim)
    return [torch.empty(shape, dtype=kind, device=device) for _ in range(layers)]
