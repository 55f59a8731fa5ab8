"""What a drafter's trees are expected to bring before a request has shown it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def path_values(acceptance: Sequence[float], size: int, depth: int) -> list[float]:
    """Acceptance probabilities of the paths to the ``size`` most valuable nodes, descending, where
    the b-th child tried is the accepted one with probability ``acceptance[b]`` at every node
    (Sequoia, arXiv 2402.12374, section 3.1). Their sum is the expected number of accepted
    tokens."""
    heap = [(-rate, 1) for rate in acceptance if rate > 0]
    heapq.heapify(heap)
    values: list[float] = []
    while heap and len(values) < size:
        negative, level = heapq.heappop(heap)
        values.append(-negative)
        if level < depth:
            for rate in acceptance:
                if rate > 0:
                    heapq.heappush(heap, (negative * rate, level + 1))
    return values
