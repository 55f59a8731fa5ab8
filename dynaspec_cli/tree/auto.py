"""The tree that promises the most tokens per second at the costs measured so far.

A round's rate is (expected tokens) / (seconds). To maximise a ratio over many rounds, go on as long
as the *marginal* rate exceeds the mean rate r of the rounds so far (Dinkelbach):

- a node is worth verifying if its path probability exceeds ``price`` = r times the seconds that a
  node adds to a verification;
- another draft step is worth drafting if what it is expected to add to the tree, the sum of
  (path probability - price) over nodes worth verifying, exceeds r times its seconds.

What a step adds at a given depth is the probability of its beam times what such steps have added
per unit of beam probability. Candidates are scored and beams chosen as in EAGLE-2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.base import GrowingTree, add_candidates, best_nodes
from dynaspec_cli.tree.costs import LinearCost, Ratio
from dynaspec_cli.tree.request import TreeRequest

WARM_UP = 4
"""First rounds, drafted to full depth and verified at full and at half size in turn, to measure
costs."""

EXPLORE = 16
"""Every so many rounds one is drafted a step deeper than seems to pay, so that gains stay known."""

RATE_DECAY = 0.8
"""The mean rate forgets quickly: it starts from the warm-up's, far below what it leads to."""


@dataclass
class TimedTree(GrowingTree):
    """``mark``: when drafting was last handed over; ``price`` of a node; ``value``: the sum of
    (path probability - price) over nodes worth verifying; ``beam``: probability of the frontier;
    ``explore``: one step more than pays is still to be taken."""

    mark: float = 0.0
    price: float = 0.0
    value: float = 0.0
    beam: float = 1.0
    explore: bool = False


class Auto:
    """EAGLE-2's candidates; depth and size by expected tokens per second, at most ``depth`` and
    ``size``.

    Its trees depend on the clock. Greedy output does not, but the use of random numbers would, so
    that a seed could not reproduce a sampled text: it is for greedy targets (the registry refuses
    it otherwise).
    """

    name = "auto"
    needs_distribution = False

    def __init__(self, config: TreeConfig, clock: Callable[[], float] = time.perf_counter) -> None:
        self.size, self.depth, self.width = config.nodes, config.depth, config.width
        self.clock = clock
        self.rounds = 0
        self.step_cost, self.verify_cost = LinearCost(), LinearCost()
        self.gains = [Ratio() for _ in range(config.depth)]
        self.rate = Ratio(RATE_DECAY)
        self._started: float | None = None
        self._finished: tuple[float, int, float] | None = None  # when, nodes, expected tokens

    def begin(self, root: int) -> TimedTree:
        now = self.clock()
        if self._finished is not None and self._started is not None:
            when, nodes, expected = self._finished
            self.verify_cost.add(nodes, now - when)
            self.rate.add(expected, now - self._started)
        self._started, self._finished = now, None
        self.rounds += 1
        price = self.rate.value(0.0) * self.verify_cost.slope
        return TimedTree(
            [root],
            mark=now,
            price=0.0 if self._measuring else price,
            explore=self.rounds % EXPLORE == 0,
        )

    def grow(self, state: TimedTree, candidates: DraftHeadOutput) -> Frontier | None:
        now = self.clock()
        if state.level:
            self.step_cost.add(len(state.frontier), now - state.mark)
        level = state.level
        fresh = add_candidates(state, candidates, self.width, state.bound(self.size))
        state.offer(fresh, self.size)
        before = state.value
        state.value = math.fsum(max(0.0, p - state.price) for p in _probabilities(state))
        self.gains[level].add(state.value - before, state.beam)
        if state.level >= self.depth:
            return None
        bound = state.bound(self.size)
        beam = [node for node in best_nodes(fresh, self.width) if state.scores[node] > bound]
        state.beam = math.fsum(math.exp(state.scores[node]) for node in beam)
        if not beam or not self._worth(state, len(beam)):
            return None
        frontier = state.expand(beam)
        state.mark = self.clock()
        return frontier

    def finish(self, state: TimedTree) -> DraftTree:
        if self._measuring and self.rounds % 2 == 0:
            kept = state.best[: (len(state.best) + 1) // 2]
        else:
            count = sum(p > state.price for p in _probabilities(state))
            kept = state.best[: max(1, count)]
        expected = 1.0 + math.fsum(math.exp(-negative) for negative, _ in kept)
        tree = state.tree(sorted(node for _, node in kept))
        self._finished = (self.clock(), len(kept), expected)
        return tree

    @property
    def _measuring(self) -> bool:
        return self.rounds <= WARM_UP

    def _worth(self, state: TimedTree, rows: int) -> bool:
        """Does another draft step promise more tokens than the time it takes is worth?"""
        if self._measuring:
            return True
        gain = state.beam * self.gains[state.level].value(1.0)
        if gain > self.rate.value(0.0) * self.step_cost.at(rows):
            return True
        explore, state.explore = state.explore, False
        return explore


def _probabilities(state: GrowingTree) -> list[float]:
    """Path probabilities of the best nodes, falling."""
    return [math.exp(-negative) for negative, _ in state.best]


def create(request: TreeRequest) -> Auto:
    if not request.greedy:
        raise UsageError(
            "--tree auto shapes its trees by the clock, so a seed could not reproduce a sampled "
            "text; choose another tree, or --temperature 0"
        )
    if request.drawing is not None:
        raise UsageError("--tree auto: expected --tree-draw auto or best, got sample")
    return Auto(request.config)
