"""DySpec (arXiv 2410.11744): the tree grows where the draft expects verification to arrive.

Its hypothesis is that a drafted token is accepted with its draft probability d. Then verification
*reaches* a slot, the k-th child of a node of path probability v, with probability v (1 - d_1 - ...
- d_(k-1)): the value telescopes over rejected siblings. Slot values only fall along a path and
along siblings, so the ``size`` most valuable slots form a tree, the one that the paper's Algorithm
1 grows with a heap (one drafter pass a node). Here it grows level by level as in Algorithm 2 (one
drafter pass a level), which draws only where the slot's value is at least ``threshold``.
"""

from __future__ import annotations

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.tree.grown import GrownBest, GrownDrawn
from dynaspec_cli.tree.request import TreeRequest
from dynaspec_cli.tree.sampled import Drawing

SLOT_VALUE = 2.0
"""Default threshold times the size of the tree. The paper takes 1; a draft step that is not taken
is worth a little more than the tokens it would bring (docs/methods/trees.md)."""


def slot_threshold(config: TreeConfig) -> float:
    """The value below which a slot is not filled."""
    own = min(1.0, SLOT_VALUE / (config.limit or config.nodes))
    return own if config.threshold is None else config.threshold


class DySpecBest(GrownBest):
    """Children are the best tokens in order of probability, and the ``size`` nodes with the largest
    path probability are kept: their sum is the expected accepted length of a greedy target."""

    name = "dyspec"

    def __init__(self, config: TreeConfig) -> None:
        self.threshold = slot_threshold(config)
        super().__init__(config, self.threshold)


class DySpecDrawn(GrownDrawn):
    """Children are drawn."""

    name = "dyspec"

    def __init__(self, config: TreeConfig, drawing: Drawing) -> None:
        self.threshold = slot_threshold(config)
        super().__init__(config, drawing, self.threshold)


def create(request: TreeRequest) -> DySpecBest | DySpecDrawn:
    if request.drawing is None:
        return DySpecBest(request.config)
    return DySpecDrawn(request.config, request.drawing)
