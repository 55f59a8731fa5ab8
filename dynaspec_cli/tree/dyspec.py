"""DySpec (arXiv 2410.11744): the tree grows where the draft expects verification to arrive.

Its hypothesis is that a drafted token is accepted with its draft probability d. Then verification
*reaches* a slot, the k-th child of a node of path probability v, with probability v (1 - d_1 - ...
- d_(k-1)): the value telescopes over rejected siblings. Slot values only fall along a path and
along siblings, so the ``size`` most valuable slots form a tree, the one that the paper's Algorithm
1 grows with a heap (one drafter pass a node). Here it grows level by level as in Algorithm 2 (one
drafter pass a level), which draws only where the slot's value is at least ``threshold``.
"""

from __future__ import annotations

import math

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.errors import bad_score
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.base import GrowingTree, best_nodes
from dynaspec_cli.tree.drawn import DrawnSlots
from dynaspec_cli.tree.sampled import Drawing

SLOT_VALUE = 2.0
"""Default threshold times the size of the tree. The paper takes 1; a draft step that is not taken
is worth a little more than the tokens it would bring (docs/trees.md)."""


def slot_threshold(config: TreeConfig) -> float:
    """The value below which a slot is not filled."""
    own = min(1.0, SLOT_VALUE / config.size)
    return own if config.threshold is None else config.threshold


class DySpecBest:
    """Children are the best tokens in order of probability, nothing is drawn, and the ``size``
    nodes with the largest path probability are kept (their sum is the expected accepted length of a
    greedy target). ``scores`` are path probabilities."""

    name = "dyspec"
    needs_distribution = False

    def __init__(self, config: TreeConfig) -> None:
        self.size, self.depth, self.width = config.size, config.depth, config.width
        self.threshold = slot_threshold(config)

    def begin(self, root: int) -> GrowingTree:
        return GrowingTree([root], scores=[1.0])

    def grow(self, state: GrowingTree, candidates: DraftHeadOutput) -> Frontier | None:
        log_q, ids = state.take(candidates)
        bound, fresh = state.bound(self.size), []
        for i, parent in enumerate(state.frontier):
            above, left = state.scores[parent], 1.0
            for token, log_d in zip(ids[i][: self.width], log_q[i], strict=False):
                if log_d != log_d:
                    raise bad_score()
                d = math.exp(min(log_d, 0.0))
                value = above * d
                if above * left < self.threshold or value <= bound:
                    break
                fresh.append((-value, state.add(parent, token, value)))
                left -= d
        state.offer(fresh, self.size)
        if state.level >= self.depth:
            return None
        floor = state.bound(self.size)
        worth = [pair for pair in fresh if -pair[0] >= self.threshold and -pair[0] > floor]
        return state.expand(best_nodes(worth, self.width)) if worth else None

    def finish(self, state: GrowingTree) -> DraftTree:
        return state.tree(state.chosen())


class DySpecDrawn(DrawnSlots):
    """Children are drawn; slots below the threshold are not filled."""

    name = "dyspec"

    def __init__(self, config: TreeConfig, drawing: Drawing) -> None:
        super().__init__(config, drawing, slot_threshold(config))
