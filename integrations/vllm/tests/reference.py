"""The shortlist in plain Python: sets and loops, one row at a time."""

from __future__ import annotations

from torch import Tensor


class PlainShortlist:
    """What one process scores. ``core`` and ``clusters`` are lists of rows."""

    def __init__(
        self,
        core: list[int],
        recent: int,
        clusters: list[list[int]] | None = None,
        router: Tensor | None = None,
        bias: Tensor | None = None,
        taken: int = 0,
    ) -> None:
        self.core, self.recent, self.taken = core, recent, taken
        self.clusters, self.router, self.bias = clusters, router, bias
        self.ring: list[int] = []  # by age, the oldest first

    def observe(self, rows: list[int]) -> None:
        for row in rows[-self.recent :] if self.recent else []:
            if row < 0 or row in self.core or row in self.ring:
                continue
            self.ring.append(row)
        if len(self.ring) > self.recent:
            self.ring = self.ring[len(self.ring) - self.recent :]

    def candidates(self, hidden: Tensor) -> set[int]:
        found = set(self.core) | set(self.ring)
        if self.taken:
            scores = self.router @ hidden + self.bias
            for cluster in scores.topk(self.taken).indices.tolist():
                found |= set(self.clusters[cluster])
        return found

    def best(self, hidden: Tensor, head: Tensor) -> int:
        return max(self.candidates(hidden), key=lambda row: float(head[row] @ hidden))
