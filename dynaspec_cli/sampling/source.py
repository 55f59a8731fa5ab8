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
        rows, support = weights.shape
        if replacement:
            uniforms = torch.rand((rows, k), generator=self.generator, dtype=torch.float64)
            cumulative = torch.cumsum(weights, 1, dtype=torch.float64)
            points = uniforms.to(weights.device) * cumulative[:, -1:]
            index = torch.searchsorted(cumulative, points, right=True)
            last = support - 1 - (weights.flip(1) > 0).int().argmax(1, keepdim=True)
            return torch.minimum(index, last).tolist()
        # Exponential race (Sequoia): the order of E_i / w_i with E_i ~ Exp(1) is that of draws
        # without replacement.
        noise = torch.empty(weights.shape, dtype=weights.dtype)
        noise.exponential_(generator=self.generator)
        times = torch.where(weights > 0, noise.to(weights.device) / weights, torch.inf)
        first = torch.topk(times, min(k, support), dim=1, largest=False)
        return [
            [i for i, t in zip(ids, ts, strict=True) if t != torch.inf]
            for ids, ts in zip(first.indices.tolist(), first.values.tolist(), strict=True)
        ]
