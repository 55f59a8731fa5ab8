"""Where randomness comes from: a seeded generator in use, an exhaustive enumerator in the tests.

Everything that draws (verification and the sampled tree policies) goes through these three methods,
so a test can replace them by one that visits every outcome with its probability.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError

VERIFY_STREAM = 0
DRAFT_STREAM = 1
"""Drafting and verification use separate streams of a seed: the acceptance test must be independent
of the draws it tests."""


class RandomSource(Protocol):
    """Random decisions of one request."""

    def accept(self, probability: float) -> bool:
        """True with the given probability (<= 0: never, >= 1: always)."""
        ...

    def categorical(self, weights: Tensor) -> int:
        """An index drawn in proportion to weights [V] >= 0 of any positive sum."""
        ...

    def draws(self, weights: Tensor, k: int, replacement: bool) -> list[list[int]]:
        """For each row of weights [w, S], up to k indices in draw order: with replacement k
        independent draws; without, each from what the earlier ones left, and fewer than k where the
        support is smaller."""
        ...


def stream_seed(seed: int, stream: int) -> int:
    """A 64-bit seed of a stream (SplitMix64's finaliser, a bijection for each stream)."""
    z = (seed + (stream + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


class GeneratorSource:
    """Random decisions from a ``torch.Generator`` of its own (on the CPU; any integer is a
    seed)."""

    def __init__(self, seed: int, stream: int = VERIFY_STREAM) -> None:
        self.generator = torch.Generator()
        self.generator.manual_seed(stream_seed(seed, stream))

    def uniform(self) -> float:
        """A double in [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def accept(self, probability: float) -> bool:
        return self.uniform() < probability

    def categorical(self, weights: Tensor) -> int:
        cumulative = torch.cumsum(weights, 0, dtype=torch.float64)
        total = float(cumulative[-1])
        if not total > 0:
            raise DynaSpecError("a token was to be drawn from a distribution without any mass")
        point = torch.tensor(self.uniform() * total, dtype=torch.float64, device=weights.device)
        # right=True: the first index whose cumulative sum *exceeds* the point, so its weight is
        # positive.
        index = int(torch.searchsorted(cumulative, point, right=True))
        if index == weights.numel():  # u * total rounded up to the total
            index = int(weights.nonzero()[-1])
        return index

    def draws(self, weights: Tensor, k: int, replacement: bool) -> list[list[int]]:
        # Inverse cumulative sums in float64. (Racing exponentials in float32 would be shorter, but
        # its smallest times lie on a grid of 2^-24, which distorts the tail of a large vocabulary.)
        cumulative = torch.cumsum(weights, 1, dtype=torch.float64)
        uniforms = torch.rand((len(weights), k), generator=self.generator, dtype=torch.float64)
        if replacement:
            points = uniforms.to(weights.device) * cumulative[:, -1:]
            index = torch.searchsorted(cumulative, points, right=True)
            last = weights.shape[1] - 1 - (weights.flip(1) > 0).int().argmax(1, keepdim=True)
            return torch.minimum(index, last).tolist()
        return _without_replacement(cumulative, uniforms.tolist(), k)


def _without_replacement(
    cumulative: Tensor, uniforms: list[list[float]], k: int
) -> list[list[int]]:
    """Ordered draws by rows of cumulative sums [w, S]: a draw is a point on the line [0, total)
    with the intervals of earlier draws cut out. A row ends when nothing is left but rounding."""
    totals = cumulative[:, -1].tolist()
    drawn: list[list[int]] = [[] for _ in totals]
    cut: list[list[tuple[float, float]]] = [[] for _ in totals]  # (start, length), ascending
    alive = list(range(len(totals)))
    for j in range(k):
        points = []
        for i in alive:
            point = uniforms[i][j] * (totals[i] - sum(length for _, length in cut[i]))
            for start, length in cut[i]:
                if point < start:
                    break
                point += length
            points.append([point])
        lines = cumulative if len(alive) == len(totals) else cumulative[alive]
        index = torch.searchsorted(lines, lines.new_tensor(points), right=True)
        index.clamp_(max=lines.shape[1] - 1)
        ends = lines.gather(1, index).squeeze(1).tolist()
        starts = lines.gather(1, (index - 1).clamp_(min=0)).squeeze(1).tolist()
        still = []
        for i, column, start, end in zip(
            alive, index.squeeze(1).tolist(), starts, ends, strict=True
        ):
            start = start if column else 0.0
            if column in drawn[i] or not end > start:
                continue
            drawn[i].append(column)
            cut[i] = sorted([*cut[i], (start, end - start)])
            still.append(i)
        alive = still
        if not alive:
            break
    return drawn
