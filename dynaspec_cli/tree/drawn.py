"""Policies whose children are drawn and whose shape follows the drafter's probabilities.

What verification may see is a *slot*, the k-th draw below a node, and whether a slot is filled and
kept never depends on the token drawn for it. With v the path probability of a node and d the
drafter's probabilities of what was drawn below it so far, a slot is worth v (1 - d_1 - ... -
d_(k-1)): the probability that verification arrives there if a token is accepted with its draft
probability (DySpec, arXiv 2410.11744, section 4.1). Slot values fall along a path and along
siblings, so the most valuable ones are a tree.

Within the shortlist d is conditional; the estimated mass of the shortlist turns it into a
probability again, in values only.
"""

from __future__ import annotations

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.base import ROOT, best_nodes
from dynaspec_cli.tree.sampled import Drawing, SampledTree


class DrawnSlots:
    """Draws up to ``width`` children of each frontier node without replacement, keeps the ``size``
    most valuable slots (of a level's, where a shortlist is shared by its frontier:
    ``SampledTree.offer_level``) and expands the ``width`` most probable nodes.

    A slot worth less than ``threshold`` is not filled. A slot that a drawn token could displace
    lies below it or after it, and is worth less: this keeps the draws unbiased. ``scores`` are path
    probabilities, priorities are slot values.
    """

    name = "drawn"
    needs_distribution = True

    def __init__(self, config: TreeConfig, drawing: Drawing, threshold: float = 0.0) -> None:
        self.size, self.depth, self.width = config.size, config.depth, config.width
        self.drawing, self.threshold = drawing, threshold

    def begin(self, root: int) -> SampledTree:
        return SampledTree([root], scores=[1.0])

    def grow(self, state: SampledTree, candidates: DraftHeadOutput) -> Frontier | None:
        state.take(candidates)
        state.shared |= candidates.shared
        bound = state.bound(self.size)
        above = [state.scores[parent] for parent in state.frontier]
        least = max(self.threshold, bound)
        drawn = self.drawing.draw(
            candidates, [self.width] * len(above), False, [least / v if v else 1.0 for v in above]
        )
        slots, values = [], []
        for i, parent in enumerate(state.frontier):
            left, mass, pairs = 1.0, drawn.mass[i], []
            for column, token, chance in zip(
                drawn.columns[i], drawn.tokens[i], drawn.chances[i], strict=True
            ):
                slot = above[i] * left
                if slot < self.threshold or slot <= bound:
                    break
                value = min(above[i] * mass * chance, slot)
                node = state.add(parent, token, value)
                pairs.append((column, node))
                slots.append((-slot, node))
                values.append((-value, node))
                left = max(left - mass * chance, 0.0)
            state.record(parent, drawn, i, pairs)
        state.offer_level(slots, self.size)
        full = state.shared and len(state.best) >= self.size
        return None if full or state.level >= self.depth else self.next(state, values)

    def next(self, state: SampledTree, values: list[tuple[float, int]]) -> Frontier | None:
        """Expand the most probable new nodes of (-path probability, node) whose first slot is worth
        a draw."""
        floor = state.bound(self.size)
        worth = [pair for pair in values if -pair[0] >= self.threshold and -pair[0] > floor]
        return state.expand(best_nodes(worth, self.width)) if worth else None

    def finish(self, state: SampledTree) -> DraftTree:
        return state.finished(state.chosen(), replacement=False)


class DrawnChain:
    """One draw a level, ``depth`` levels (at most ``size``)."""

    name = "chain"
    width = 1
    needs_distribution = True

    def __init__(self, config: TreeConfig, drawing: Drawing) -> None:
        self.depth, self.drawing = min(config.depth, config.size), drawing

    def begin(self, root: int) -> SampledTree:
        return SampledTree([root])

    def grow(self, state: SampledTree, candidates: DraftHeadOutput) -> Frontier | None:
        state.take(candidates)
        drawn = self.drawing.draw(candidates, [1], False)
        node = state.add(state.frontier[0], drawn.tokens[0][0], 0.0)
        state.record(state.frontier[0], drawn, 0, [(drawn.columns[0][0], node)])
        return None if state.level >= self.depth else state.expand([node])

    def finish(self, state: SampledTree) -> DraftTree:
        return state.finished(range(ROOT + 1, len(state.tokens)), replacement=False)
