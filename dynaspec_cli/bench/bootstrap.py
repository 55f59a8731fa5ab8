"""Paired bootstrap intervals for ratios of pooled sums.

Prompts are the units: both arms of a ratio are resampled with the same draw of prompts (all repeats
of a prompt stay together), so that what a prompt costs every arm cancels. Percentile intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

DRAWS = 10_000
MIN_UNITS = 2
"""An interval from a single prompt would say nothing; fewer units give none."""


@lru_cache(maxsize=32)
def _draw_counts(units: int, seed: int, draws: int) -> Any:
    """How often each prompt is drawn: float64 [draws, units], so that a resampled sum is a
    product."""
    generator = np.random.default_rng(seed % 2**64)
    counts = generator.multinomial(units, np.full(units, 1.0 / units), size=draws)
    return counts.astype(np.float64)


def ratio_ci95(
    numerator: tuple[Sequence[float], Sequence[float]],
    denominator: tuple[Sequence[float], Sequence[float]],
    seed: int,
    draws: int = DRAWS,
) -> tuple[float, float] | None:
    """95 % interval of ``(sum a / sum b) / (sum c / sum d)`` for ``numerator`` = (a, b) and
    ``denominator`` = (c, d), each a sequence with one entry a prompt, in the same order of
    prompts."""
    a, b = (np.asarray(x, dtype=np.float64) for x in numerator)
    c, d = (np.asarray(x, dtype=np.float64) for x in denominator)
    units = len(a)
    if units < MIN_UNITS or min(len(b), len(c), len(d)) != units:
        return None
    counts = _draw_counts(units, seed, draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (counts @ a) * (counts @ d) / ((counts @ b) * (counts @ c))
    ratios = ratios[np.isfinite(ratios)]
    if not ratios.size:
        return None
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
