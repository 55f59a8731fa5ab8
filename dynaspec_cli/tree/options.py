"""Settings of single tree policies, beyond size, depth and width; every value is checked where it
is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynaspec_cli.errors import UsageError

SPECINFER_EXPANSION = (1, 1, 3, 1, 1, 1, 1, 1)
"""SpecInfer's default <k1..km> (arXiv 2305.09781, section 6.1): three paths, eight levels."""

SEQUOIA_ACCEPTANCE = (0.6342, 0.1079, 0.0570, 0.0225, 0.0195, 0.015, 0.012, 0.010, 0.008, 0.007)
"""Probability that the b-th child tried is the one accepted. The first six are the example that
Sequoia's repository ships (a 68M drafter for Llama-2-7B); the rest continue them."""


@dataclass(frozen=True)
class TreeOptions:
    """``draft_temperature``: at which children are sampled (> 0); None: the target's temperature.
    ``ddd_steps``: draft steps after which DDD tests its beam (None: each one). ``expansion``:
    SpecInfer's children per node at each level; None: the paper's, cut to ``depth``, ``width`` and
    ``size``. ``acceptance``: Sequoia's acceptance by position among siblings, each in [0, 1], of
    sum at most 1.
    """

    draft_temperature: float | None = None
    ddd_steps: tuple[int, ...] | None = None
    expansion: tuple[int, ...] | None = None
    acceptance: tuple[float, ...] = SEQUOIA_ACCEPTANCE

    def __post_init__(self) -> None:
        heat = self.draft_temperature
        if heat is not None and not (math.isfinite(heat) and heat > 0):
            raise UsageError(f"draft temperature: expected a number above 0, got {heat}")
        if self.ddd_steps is not None and any(step < 1 for step in self.ddd_steps):
            raise UsageError(f"DDD steps: expected numbers of at least 1, got {self.ddd_steps}")
        if self.expansion is not None and (
            not self.expansion or any(not 1 <= k <= 64 for k in self.expansion)
        ):
            raise UsageError(
                "tree expansion: expected 1 to 64 children at each of its levels, got "
                f"{self.expansion}"
            )
        a = self.acceptance
        if not a or not all(0 <= x <= 1 for x in a) or sum(a) > 1 + 1e-9:
            raise UsageError(
                f"acceptance by position: expected numbers in [0, 1] of sum at most 1, got {a}"
            )
