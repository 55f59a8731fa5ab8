"""Tokens of the context: what the prompt holds, what the target nearly said, what was drafted.

The set is capped and forgets the least recently seen. It keeps rows of the draft head, not token
ids, in one preallocated array, because that is what the union op reads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dynaspec_cli.shortlist.head import DraftHead


class ContextTokens:
    """At most ``capacity`` rows of ``head``, the most recently added; of one request."""

    def __init__(self, head: DraftHead, capacity: int) -> None:
        self._head = head
        self.capacity = max(0, min(capacity, head.num_rows))
        self._slot = np.full(head.num_rows, -1, dtype=np.int32)  # row -> slot, -1: absent
        self._rows = np.zeros(self.capacity, dtype=np.int32)
        self._stamp = np.zeros(self.capacity, dtype=np.int64)
        self._clock = 0
        self._count = 0
        self._view = torch.from_numpy(self._rows)
        self.journal: list[Tensor] | None = None
        """Where rows int64 [m] of every further ``add`` are noted, for a copy on the device."""

    def __len__(self) -> int:
        return self._count

    def rows(self) -> Tensor:
        """int32 [r], r <= capacity, distinct, in no order, on the head's device."""
        return self.host_rows().to(self._head.device)

    def host_rows(self) -> Tensor:
        """``rows`` on the host."""
        return self._view[: self._count]

    def in_order(self) -> Tensor:
        """int64 [r]: the set on the host, the least recently mentioned first."""
        order = np.argsort(self._stamp[: self._count])
        return torch.from_numpy(self._rows[: self._count][order].astype(np.int64))

    def holds(self, rows: Tensor) -> Tensor:
        """bool [m]: is a row (int64 [m] on the host, none negative) in the set."""
        return torch.from_numpy(self._slot[rows.numpy()] >= 0)

    def add(self, token_ids: Tensor) -> None:
        """Mark ids int64 [m] as seen, later ones more recently; evicts the least recently seen
        beyond the capacity."""
        if self.capacity == 0 or token_ids.numel() == 0:
            return
        rows = self._head.rows_of(token_ids.reshape(-1)).cpu().numpy()
        rows = rows[rows >= 0]
        if rows.size > 1:
            # Distinct rows in order of their last mention; only the last ``capacity`` can stay.
            last_first = rows[::-1]
            _, first = np.unique(last_first, return_index=True)
            first.sort()
            rows = last_first[first][: self.capacity][::-1]
        if self.journal is not None:
            self.journal.append(torch.from_numpy(rows.astype(np.int64)))
        stamps = self._clock + 1 + np.arange(rows.size)
        self._clock += rows.size
        slots = self._slot[rows]
        known = slots >= 0
        self._stamp[slots[known]] = stamps[known]
        new, new_stamps = rows[~known], stamps[~known]
        fresh = min(new.size, self.capacity - self._count)
        places = np.arange(self._count, self._count + fresh)
        self._count += fresh
        evicted = new.size - fresh
        if evicted:
            # Slots filled or refreshed by this call carry the newest stamps. The new rows that find
            # no free slot take the oldest ones: there are enough, since this call mentions at most
            # ``capacity`` rows.
            self._stamp[places] = new_stamps[:fresh]
            oldest = np.argpartition(self._stamp[: self._count], evicted - 1)[:evicted]
            self._slot[self._rows[oldest]] = -1
            places = np.concatenate([places, oldest])
        self._rows[places] = new
        self._stamp[places] = new_stamps
        self._slot[new] = places
