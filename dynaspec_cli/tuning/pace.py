"""How many nodes the next round drafts, by what the request's rounds have brought and what rounds
cost.

With E(n) the expected number of accepted tokens of a tree of its n most probable nodes, a round
yields 1 + E(n) tokens in the time that the cost table gives for n nodes; the size with the most
tokens a millisecond is taken, 0 (plain decoding) among them. E(n) is the mean, over recent rounds,
of the sum of the n largest path probabilities that the tree estimated, times the ratio of accepted
to estimated tokens. Where nothing is drafted nothing is learned, so now and then a round drafts
again; the pause doubles while that does not pay, and ends where it did.

Estimates can be wrong, so a round must also be affordable (account.py): what drafting has lost the
request on the whole stays within its overdraft, whatever the rounds bring. A request's first rounds
are small for that reason, and grow with what was saved.

Counts and the table decide, never the clock: a seed gives one text as long as the table is the
same. The size is chosen before a round draws anything, so that sampling stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.tuning.account import ALLOWANCE, MEASURED_ALLOWANCE, Account
from dynaspec_cli.tuning.costs import CostTable, prefix_sums, steps_of

FADING = 0.85
"""What a round keeps of its weight at each later one: a memory of some seven rounds."""
PRIOR_ROUNDS = 2.0
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PAUSE, LONGEST_PAUSE = 24, 192
"""Plain rounds before drafting is tried again, at first and at most."""
MARGIN = 1.02
"""A round that drafts must promise this much more than a plain one: estimates are noisy."""


@dataclass(frozen=True)
class Round:
    """What a round that drafted did: ``steps`` draft steps after reading ``read`` settled tokens,
    ``nodes`` verified in all, ``settled`` tokens, ``accepted`` of them nodes of the drafter's own
    tree. ``matched`` and ``instead``: the tokens that a round without the drafter would have had
    accepted, and the nodes that it would have verified (those of lookup)."""

    steps: int
    read: int
    nodes: int
    accepted: int
    settled: int
    matched: int = 0
    instead: int = 0


class Pace:
    """Of one request. ``size`` is the most nodes a round may have, ``depth`` its draft steps;
    ``prior``: path probabilities expected of a tree's nodes, descending, and whether they rest on
    acceptance that was ``measured``."""

    def __init__(
        self,
        costs: CostTable,
        size: int,
        depth: int,
        prior: Sequence[float],
        measured: bool = False,
    ) -> None:
        self.costs, self.depth, self._prior = costs, depth, tuple(prior)
        allowance = MEASURED_ALLOWANCE if measured else ALLOWANCE
        self.account = Account(costs.verify_ms(1), allowance)
        self.sizes = [n for n in LADDER if n < size] + [size]
        sums = prefix_sums(self._prior[:size])
        self._prior_sums = sums + [sums[-1]] * (size + 1 - len(sums))
        self._sums = [s * PRIOR_ROUNDS for s in self._spread(prior[:size], size)]
        self._rounds = PRIOR_ROUNDS
        expected = self._sums[-1]
        self._accepted, self._estimated = expected, max(expected, 1e-6)
        self._steps: dict[int, tuple[float, float]] = {}
        self._plain, self._pause = 0, PAUSE // 2
        self._asked, self._trial = 0, False

    def _spread(self, values: Sequence[float], asked: int) -> list[float]:
        """Sums of the largest 0, 1, 2, ... values up to ``size``. A tree that was given ``asked``
        nodes and filled them says nothing of more: there the prior goes on, in proportion. One
        that did not fill them had no more to offer."""
        sums, prior, size = prefix_sums(values), self._prior_sums, self.sizes[-1]
        seen = len(sums) - 1
        share = sums[seen] / prior[seen] if asked <= seen <= size and prior[seen] > 0 else 0.0
        if not share:
            return (sums + [sums[seen]] * (size - seen))[: size + 1]
        return sums + [
            sums[seen] + share * (prior[n] - prior[seen]) for n in range(seen + 1, size + 1)
        ]

    def expected(self, nodes: int) -> float:
        """E(nodes)."""
        return self._sums[nodes] / self._rounds * self._accepted / self._estimated

    def rate(self, nodes: int) -> float:
        """Tokens a millisecond of a round with ``nodes`` nodes."""
        if nodes == 0:
            return 1.0 / self.costs.verify_ms(1)
        total, rounds = self._steps.get(nodes, (0.0, 0.0))
        steps = total / rounds if rounds else steps_of(nodes, self.depth)
        return (1.0 + self.expected(nodes)) / self.costs.round_ms(nodes, steps)

    def risk_ms(self, nodes: int, read: int) -> float:
        """What a round with ``nodes`` nodes loses where none is accepted: a tree has no more levels
        than nodes."""
        worst = self.costs.round_ms(nodes, min(nodes, self.depth), read)
        return worst - self.account.pass_ms

    def next(self, read: int = 1) -> int:
        """Nodes of the next round at most; 0: none, and nothing is drafted. ``read``: settled
        tokens that the drafter would have to read first."""
        self._asked = 0
        if self._trial and self._plain < self._pause:
            self._plain += 1
            return 0
        sizes = [n for n in self.sizes if self.account.affords(self.risk_ms(n, read))]
        if not sizes:
            return 0
        best = max(sizes, key=self.rate)
        trial = self.rate(best) < MARGIN * self.rate(0)
        if trial and not self._trial:
            self._plain = 0
        self._trial = trial
        if trial and self._plain < self._pause:
            self._plain += 1
        else:
            self._asked = best
        return self._asked

    def skip(self, tokens: int) -> None:
        """A round that did not draft has ended with so many tokens."""
        self.account.enter(0.0, tokens)

    def affords(self, tokens: int) -> bool:
        """Has drafting saved what it costs that the drafter reads so many tokens?"""
        return self.account.balance >= self.costs.read_ms * tokens

    def observe(self, tree: DraftTree, done: Round) -> None:
        """A round that drafted has ended, with the drafter's ``tree``. A tree without estimates is
        taken to be as the prior has it."""
        spent = self.costs.round_ms(done.nodes, done.steps, done.read)
        more = done.settled - 1 - done.matched
        saved = more * self.account.pass_ms - (spent - self.costs.verify_ms(done.instead + 1))
        self.account.enter(saved, done.settled)
        values = self._prior[: tree.num_nodes] if tree.values is None else tree.values
        sums = self._spread(values, self._asked)
        self._sums = [FADING * old + new for old, new in zip(self._sums, sums, strict=True)]
        self._rounds = FADING * self._rounds + 1.0
        self._accepted = FADING * self._accepted + done.accepted
        self._estimated = FADING * self._estimated + max(sum(values), 1e-6)
        if self._trial and saved <= 0:
            self._plain, self._pause = 0, min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._plain = self._pause = PAUSE
        total, rounds = self._steps.get(self._asked, (0.0, 0.0))
        self._steps[self._asked] = (FADING * total + done.steps, FADING * rounds + 1.0)
