"""Lookup beside a drafter: how much of a round each of them gets, from what each has delivered.

A round of lookup alone costs no draft step, so it is taken where its continuations promise at
least as many tokens as the drafter's rounds have brought. Otherwise those of them that are likely
take part of the drafter's tree. Everything follows counts of the request, never the clock, so that
a seed reproduces a text; with sampling the choice is made before anything is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynaspec_cli.drafters.lookup.continuations import Continuations, continuations
from dynaspec_cli.drafters.lookup.drafter import LookupState

FADING = 0.9
"""What a round keeps of its weight at each later one: a memory of ten."""
PRIOR_ROUNDS = 3.0
PRIOR_ACCEPTED = 1.5
"""Drafted tokens that a round of the drafter is expected to bring before any was seen."""
LIKELY = 0.5
"""Path probability from which a continuation takes a node of the drafter's tree."""
DEEPEST = 16
"""Levels of continuations; a match longer than that is rare."""


class Faded:
    """A mean of observations that fade, with a prior."""

    def __init__(self, prior: float, weight: float) -> None:
        self._total, self._weight = prior * weight, weight

    @property
    def mean(self) -> float:
        return self._total / self._weight

    def observe(self, value: float, of: float = 1.0) -> None:
        """``value`` out of ``of``."""
        self._total = self._total * FADING + value
        self._weight = self._weight * FADING + of


@dataclass(frozen=True)
class Share:
    """Continuations of one round; ``alone``: the drafter is not asked."""

    found: Continuations
    alone: bool


class Beside:
    """The state of one request."""

    def __init__(self, lookup: LookupState) -> None:
        self.lookup = lookup
        self._drafter = Faded(PRIOR_ACCEPTED, PRIOR_ROUNDS)
        self._kept = Faded(1.0, 2.0)  # tokens delivered over tokens promised by lookup alone

    def share(self, tokens: list[int], size: int) -> Share:
        """Add settled tokens to the text; the continuations for a tree of ``size`` nodes."""
        self.lookup.append(tokens)
        found = continuations(self.lookup, size, DEEPEST)
        if found.expected * self._kept.mean >= self._drafter.mean:
            return Share(found, alone=True)
        return Share(found.first(size // 2, LIKELY), alone=False)

    def observe(self, share: Share, accepted: int, drafted: int) -> None:
        """A round ended: ``accepted`` tokens in all, ``drafted`` of them in the drafter's own
        tree."""
        if share.alone:
            self._kept.observe(accepted, share.found.expected)
        else:
            self._drafter.observe(drafted)
