"""Lookup beside a drafter: how much of a round each of them gets, from what each has delivered.

A round of lookup alone costs no draft step, so it is taken where its continuations promise more
tokens a millisecond than the drafter's round would, or, where no costs are known, at least as many
tokens as the drafter's rounds have brought. Otherwise those of them that are likely take part of
the drafter's tree. Where costs are known lookup has an account of its own (tuning/account.py):
nothing is verified that the request could not afford to lose. Everything follows counts of the
request and the table of costs, never the clock, so that a seed reproduces a text; with sampling the
choice is made before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynaspec_cli.drafters.lookup.continuations import Continuations, continuations
from dynaspec_cli.drafters.lookup.drafter import LookupState
from dynaspec_cli.tuning.account import Account
from dynaspec_cli.tuning.costs import CostTable, prefix_sums

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
    """Continuations of one round; ``alone``: the drafter is not asked. ``whole``: those of a round
    of lookup alone."""

    found: Continuations
    alone: bool
    whole: Continuations


class Beside:
    """The state of one request. ``costs``: None where trees have a fixed size."""

    def __init__(self, lookup: LookupState, costs: CostTable | None = None) -> None:
        self.lookup, self.costs = lookup, costs
        self.account = None if costs is None else Account(costs.verify_ms(1))
        self._drafter = Faded(PRIOR_ACCEPTED, PRIOR_ROUNDS)
        self._kept = Faded(1.0, 2.0)  # tokens delivered over tokens promised by lookup alone

    def share(self, tokens: list[int], size: int, nodes: int, rate: float) -> Share:
        """Add settled tokens to the text; the continuations of a round in which the drafter would
        grow ``nodes`` of at most ``size`` nodes and promises ``rate`` tokens a millisecond (what
        plain decoding does where it would grow none)."""
        self.lookup.append(tokens)
        found = continuations(self.lookup, size, DEEPEST)
        if self.costs is None:
            alone = found.expected * self._kept.mean >= self._drafter.mean
        else:
            found, own_rate = self._worth(found, self.costs)
            alone = nodes == 0 or (own_rate > rate and bool(found.tokens))
        return Share(found if alone else found.first(nodes // 2, LIKELY), alone, found)

    def _worth(self, found: Continuations, costs: CostTable) -> tuple[Continuations, float]:
        """As many of the most probable nodes as give the most tokens a millisecond, of those that
        can be afforded, and these."""
        assert self.account is not None
        best, most = 0, 1.0 / costs.verify_ms(1)
        for count, expected in enumerate(prefix_sums(found.chances)):
            spent = costs.verify_ms(count + 1)
            if not self.account.affords(spent - costs.verify_ms(1)):
                break
            rate = (1.0 + expected * self._kept.mean) / spent
            if rate > most:
                best, most = count, rate
        return found.first(best), most

    def observe(self, share: Share, settled: Sequence[int], drafted: int) -> int:
        """A round ended that ``settled`` tokens (accepted ones, then the bonus token), ``drafted``
        of them nodes of the drafter's own tree. How many would lookup alone have had accepted, as
        far as they show?"""
        accepted = len(settled) - 1
        matched = share.whole.matched(settled)
        if not share.alone:
            self._drafter.observe(drafted)
        elif share.found.tokens:
            self._kept.observe(accepted, share.found.expected)
        if self.account is not None and self.costs is not None:
            alone = share.alone and share.found.tokens
            spent = self.costs.verify_ms(len(share.found.tokens) + 1 if alone else 1)
            saved = (1 + accepted) * self.account.pass_ms - spent if alone else 0.0
            self.account.enter(saved, len(settled))
        return matched
