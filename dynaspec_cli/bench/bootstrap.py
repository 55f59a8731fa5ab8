"""Paired bootstrap intervals for ratios of pooled sums.

Prompts are the units: both arms of a ratio are resampled with the same draw of prompts (all repeats
of a prompt stay together), so that what a prompt costs every arm cancels. Intervals are BCa
(bias-corrected and accelerated; Efron 1987), by ``scipy.stats.bootstrap``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 10_000
MIN_UNITS = 2
"""An interval from a single prompt would say nothing; fewer units give none."""

FEW_UNITS = 20
"""Fewer prompts than these vary too little among themselves: of intervals called 95 %, those from 5
prompts held the true ratio in 80 % of 1,500 simulated runs, from 8 in 87 %, from 12 in 89 %, from
20 in 90 %, from 40 in 93 % and from 80 in 94 % (prompts' speedups log-normal, sigma 0.35)."""

_CONSTANT = 1e-9
"""Relative spread of the resampled ratios below which they differ by rounding alone."""


def ratio_ci95(
    numerator: tuple[Sequence[float], Sequence[float]],
    denominator: tuple[Sequence[float], Sequence[float]],
    seed: int,
    draws: int = DRAWS,
) -> tuple[float, float] | None:
    """95 % interval of ``(sum a / sum b) / (sum c / sum d)`` for ``numerator`` = (a, b) and
    ``denominator`` = (c, d), each a sequence with one entry a prompt, in the same order of prompts.

    Where every prompt has the same ratio the interval is that ratio. None: fewer than
    ``MIN_UNITS`` prompts, or so degenerate that no interval follows (a draw of prompts without any
    tokens has no ratio).
    """
    from scipy.stats import bootstrap

    arms = np.asarray([*numerator, *denominator], dtype=np.float64)
    arms = arms[:, arms.any(axis=0)]  # a prompt without tokens and seconds in any arm adds nothing
    if arms.shape[1] < MIN_UNITS:
        return None
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # scipy's DegenerateDataWarning: met below
        result = bootstrap(
            tuple(arms),
            _pooled_ratio,
            paired=True,
            vectorized=True,
            n_resamples=draws,
            method="BCa",
            rng=np.random.default_rng(seed % 2**64),
        )
    ratios = result.bootstrap_distribution
    if not np.isfinite(ratios).all():
        return None
    if np.ptp(ratios) <= _CONSTANT * abs(ratios).max():
        return float(ratios.min()), float(ratios.max())
    low, high = result.confidence_interval
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def _pooled_ratio(a: Any, b: Any, c: Any, d: Any, axis: int) -> Any:
    return a.sum(axis) * d.sum(axis) / (b.sum(axis) * c.sum(axis))
