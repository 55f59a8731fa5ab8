"""DySpec (arXiv 2410.11744): the tree grows where the draft expects verification to arrive.

Its hypothesis is that a drafted token is accepted with its draft probability d. Then verification
*reaches* a slot, the k-th child of a node of path probability v, with probability v (1 - d_1 - ...
- d_(k-1)): the value telescopes over rejected siblings. Slot values only fall along a path and
along siblings, so the ``size`` most valuable slots form a tree, the one that the paper's Algorithm
1 grows with a heap (one drafter pass a node). Here it grows level by level as in Algorithm 2 (one
drafter pass a level), which draws only where the slot's value is at least ``threshold``.

Within the shortlist d is conditional; the estimated mass of the shortlist turns it into a
probability again, in values only.
"""

from __future__ import annotations

import math

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.base import GrowingTree, best_nodes
from dynaspec_cli.tree.request import TreeRequest
from dynaspec_cli.tree.sampled import Drawing, SampledTree

SLOT_VALUE = 2.0
"""Default threshold times the size of the tree. The paper takes 1; a draft step that is not taken
is worth a little more than the tokens it would bring (docs/methods/trees.md)."""


class _DySpec:
    name = "dyspec"

    def __init__(self, config: TreeConfig) -> None:
        self.size, self.depth, self.width = config.size, config.depth, config.width
        own = min(1.0, SLOT_VALUE / config.size)
        self.threshold = own if config.threshold is None else config.threshold

    def _next(self, state: GrowingTree, values: list[tuple[float, int]]) -> Frontier | None:
        """Expand the ``width`` most probable new nodes of (-path probability, node) whose first
        slot is worth a draw."""
        if state.level >= self.depth:
            return None
        floor = state.bound(self.size)
        worth = [pair for pair in values if -pair[0] >= self.threshold and -pair[0] > floor]
        return state.expand(best_nodes(worth, self.width)) if worth else None


class DySpecGreedy(_DySpec):
    """For a greedy target: children are the best tokens in order of probability, nothing is drawn,
    and the ``size`` nodes with the largest path probability are kept (their sum is the expected
    accepted length). ``scores`` are path probabilities."""

    needs_distribution = False

    def begin(self, root: int) -> GrowingTree:
        return GrowingTree([root], scores=[1.0])

    def grow(self, state: GrowingTree, candidates: DraftHeadOutput) -> Frontier | None:
        log_q, ids = state.take(candidates)
        bound, fresh = state.bound(self.size), []
        for i, parent in enumerate(state.frontier):
            above, left = state.scores[parent], 1.0
            for token, log_d in zip(ids[i][: self.width], log_q[i], strict=False):
                if log_d != log_d:
                    raise NotFiniteError.of_drafter()
                d = math.exp(min(log_d, 0.0))
                value = above * d
                if above * left < self.threshold or value <= bound:
                    break
                fresh.append((-value, state.add(parent, token, value)))
                left -= d
        state.offer(fresh, self.size)
        return self._next(state, fresh)

    def finish(self, state: GrowingTree) -> DraftTree:
        return state.tree(state.chosen())


class DySpecSampled(_DySpec):
    """For a sampling target: children are drawn without replacement, and the ``size`` most valuable
    slots are kept; of a level's, where a shortlist is shared by its frontier
    (``SampledTree.offer_level``).

    Whether a slot is filled never depends on the token drawn for it, only on what was drawn before:
    a slot that its token could have displaced lies below it or after it, and is worth less. This
    keeps the draws unbiased. ``scores`` are path probabilities, priorities are slot values.
    """

    needs_distribution = True

    def __init__(self, config: TreeConfig, drawing: Drawing) -> None:
        super().__init__(config)
        self.drawing = drawing

    def begin(self, root: int) -> SampledTree:
        return SampledTree([root], scores=[1.0])

    def grow(self, state: SampledTree, candidates: DraftHeadOutput) -> Frontier | None:
        state.take(candidates)
        state.shared |= candidates.shared
        drawn = self.drawing.draw(candidates, self.width, replacement=False)
        bound = state.bound(self.size)
        slots, values = [], []
        for i, parent in enumerate(state.frontier):
            above, left, mass = state.scores[parent], 1.0, drawn.mass[i]
            pairs = []
            for column, token, chance in zip(
                drawn.columns[i], drawn.tokens[i], drawn.chances[i], strict=True
            ):
                slot = above * left
                if slot < self.threshold or slot <= bound:
                    break
                value = min(above * mass * chance, slot)
                node = state.add(parent, token, value)
                pairs.append((column, node))
                slots.append((-slot, node))
                values.append((-value, node))
                left = max(left - mass * chance, 0.0)
            state.drafts[parent] = (drawn, i, pairs)
        state.offer_level(slots, self.size)
        full = state.shared and len(state.best) >= self.size
        return None if full else self._next(state, values)

    def finish(self, state: SampledTree) -> DraftTree:
        return state.finished(state.chosen(), replacement=False)


def create(request: TreeRequest) -> DySpecGreedy | DySpecSampled:
    if request.drawing is None:
        return DySpecGreedy(request.config)
    return DySpecSampled(request.config, request.drawing)
