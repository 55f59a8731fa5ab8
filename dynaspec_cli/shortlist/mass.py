"""The target's mass outside a shortlist, as the tree's scores see it.

A softmax over S gives q(x | x in S), which overstates q(x) by 1 / P(S). With one fixed S that is
the same factor for all siblings, but it favours deep paths, and with an S that changes from step to
step it makes scores of different steps incomparable. ``log_q = log_softmax_S + log m`` with m an
estimate of P(S) undoes it. The estimate enters priorities only: verification uses the distribution
that was drawn from.
"""

from __future__ import annotations

import math

from dynaspec_cli.errors import UsageError

MASS_MODES = ("none", "constant", "running")

CONSTANT_MASS = 0.95
"""Share of the target's top tokens that the default shortlist held on held-out text
(docs/methods/shortlists.md)."""
PRIOR_WEIGHT = 16.0
"""Pseudo-observations of ``CONSTANT_MASS`` a depth starts with under "running"."""


class MassEstimate:
    """Mass by depth, for one request. "running": share of verified positions whose target token was
    in the shortlist of that depth, shrunk towards ``CONSTANT_MASS``."""

    def __init__(self, mode: str = "none") -> None:
        if mode not in MASS_MODES:
            raise UsageError(f"mass: expected one of {', '.join(MASS_MODES)}, got {mode!r}")
        self.mode = mode
        self._hits: dict[int, float] = {}
        self._seen: dict[int, float] = {}

    def log_mass(self, depth: int) -> float:
        """Natural logarithm of the estimated mass in the shortlist at this depth, at most 0."""
        if self.mode == "none":
            return 0.0
        if self.mode == "constant":
            return math.log(CONSTANT_MASS)
        hits = self._hits.get(depth, 0.0) + CONSTANT_MASS * PRIOR_WEIGHT
        return math.log(hits / (self._seen.get(depth, 0.0) + PRIOR_WEIGHT))

    def observe(self, depth: int, hit: bool) -> None:
        self._hits[depth] = self._hits.get(depth, 0.0) + float(hit)
        self._seen[depth] = self._seen.get(depth, 0.0) + 1.0
