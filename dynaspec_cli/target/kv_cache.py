"""The preallocated KV cache that ``transformers`` models write to.

Rows ``0 .. length`` are committed and row j holds position j. A verified tree occupies rows
``length .. length + n``; committing a path moves its rows to the front of that range. Rows are
never evicted, also not in sliding-window layers (the mask leaves them out), so that any commit is a
move.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dynaspec_cli.target.state import grown


class PreallocatedLayer(CacheLayerMixin):
    """Keys and values [1, kv_heads, rows, head_dim] of one layer."""

    is_sliding = False
    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.length = 0
        self.ahead = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate from the first keys [1, kv_heads, n, head_dim] seen: only they know the
        shape."""
        self.dtype, self.device = key_states.dtype, key_states.device
        shape = list(key_states.shape)
        shape[2] = self.rows
        self.keys = key_states.new_empty(shape)
        shape[3] = value_states.shape[3]
        self.values = value_states.new_empty(shape)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write n rows behind the committed ones and ``ahead`` others; returns views of all rows so
        far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.length + self.ahead
        end, have = begin + key_states.shape[2], self.keys.shape[2]
        if end > have:
            rows = max(end, have + have // 4)
            self.keys = grown(self.keys, 2, begin, rows)
            self.values = grown(self.values, 2, begin, rows)
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Commit ``rows`` int64 [a] (relative to the committed length, ascending)."""
        start, end = self.length, self.length + rows.numel()
        if self.is_initialized:
            rows = rows.to(self.keys.device)  # layers may lie on several devices
            for cache in (self.keys, self.values):
                cache[:, :, start:end] = cache.index_select(2, rows + start)
        self.length = end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + self.ahead + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class PreallocatedCache(Cache):
    """``past_key_values`` of a ``transformers`` model: one ``PreallocatedLayer`` a decoder
    layer."""

    def __init__(self, num_layers: int, rows: int) -> None:
        self._own = [PreallocatedLayer(rows) for _ in range(num_layers)]
        super().__init__(layers=list(self._own))

    def ahead(self, rows: int) -> None:
        """How many rows of a tree the next pass writes behind."""
        for layer in self._own:
            layer.ahead = rows

    def append(self, count: int) -> None:
        """Commit the ``count`` rows written last, in order: only the length moves."""
        for layer in self._own:
            layer.length += count

    def rewind(self, length: int) -> None:
        """Commit the first ``length`` rows alone; an interrupted pass may have left layers of
        different lengths."""
        for layer in self._own:
            layer.length = length

    def keep(self, rows: Tensor, device: torch.device | None = None) -> None:
        """Commit the given rows int64 [a] of the tree written last. ``rows`` of the host are
        compared there and moved to ``device`` only then, so that nothing waits for it."""
        if torch.equal(rows, torch.arange(rows.numel(), device=rows.device)):
            self.append(rows.numel())
            return
        rows = rows if device is None else rows.to(device)
        for layer in self._own:
            layer.keep(rows)
