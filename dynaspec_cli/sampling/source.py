"""Where randomness comes from: a seeded generator in use, an exhaustive enumerator in the tests.

Everything that draws (verification and the sampled tree policies) goes through these three methods,
so a test can replace them by one that visits every outcome with its probability. The ops below them
take their randomness as uniforms, so that they are functions of their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.errors import DynaSpecError

VERIFY_STREAM = 0
DRAFT_STREAM = 1
"""Drafting and verification use separate streams of a seed: the acceptance test must be independent
of the draws it tests."""

BATCH = 64
"""Uniforms that are drawn at a time."""


class RandomSource(Protocol):
    """Random decisions of one request."""

    def accept(self, probability: float) -> bool:
        """True with the given probability (<= 0: never, >= 1: always)."""
        ...

    def categorical(self, weights: Tensor) -> int:
        """An index drawn in proportion to weights [V] >= 0 of any positive sum."""
        ...

    def uniforms(
        self, law: Callable[[], Tensor], counts: Sequence[int], replacement: bool
    ) -> Tensor:
        """Float64 [w, max(counts)] in [0, 1): what the draws turn into up to counts[i]
        draws from row i of ``law()`` [w, S], with or without replacement."""
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
        self._ready: list[float] = []

    def uniforms(
        self, law: Callable[[], Tensor] | None, counts: Sequence[int], replacement: bool = False
    ) -> Tensor:
        shape = (len(counts), max(counts, default=0))
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self) -> float:
        """A double in [0, 1)."""
        if not self._ready:
            self._ready = torch.rand(BATCH, generator=self.generator, dtype=torch.float64).tolist()
        return self._ready.pop()

    def ahead(self, count: int) -> Tensor:
        """Float64 [count]: what ``uniform`` will yield next."""
        while len(self._ready) < count:
            more = torch.rand(BATCH, generator=self.generator, dtype=torch.float64).tolist()
            self._ready = more + self._ready  # taken from the end
        return torch.tensor(self._ready[: -count - 1 : -1], dtype=torch.float64)

    def skip(self, count: int) -> None:
        """As many uniforms were used."""
        del self._ready[len(self._ready) - count :]

    def accept(self, probability: float) -> bool:
        return self.uniform() < probability

    def categorical(self, weights: Tensor) -> int:
        index = ops.draw_index(weights.cpu(), self.uniform())
        if index < 0:
            raise DynaSpecError("a token was to be drawn from a distribution without any mass")
        return index
