"""Uniforms drawn ahead of a round on the device, from the request's own generator."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.sampling.source import GeneratorSource


class DrawnAhead:
    """The most uniforms that a round can need; ``settle`` puts back those that it did not use, so
    that the generator stands where a round on the host would have left it."""

    def __init__(self, source: GeneratorSource, count: int) -> None:
        self._generator = source.generator
        self._before = self._generator.get_state()
        self.values = self._draw(count)

    def settle(self, used: int) -> None:
        self._generator.set_state(self._before)
        self._draw(used)

    def _draw(self, count: int) -> Tensor:
        return torch.rand(count, generator=self._generator, dtype=torch.float64)
