"""Dynamic Depth Decoding (arXiv 2409.00142): EAGLE-2's tree, drafted for as long as its beam is
probable."""

from __future__ import annotations

import math
from typing import Any

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.tree.grown import Grown, GrownBest, GrownDrawn
from dynaspec_cli.tree.request import TreeRequest
from dynaspec_cli.tree.sampled import Drawing

BEAM_PROBABILITY = math.exp(-0.3)
"""The paper's x is the logarithm of this."""


class _DynamicDepth(Grown):
    """After a draft step, H = log sum_i exp(score_i) over the beam, the ``width`` best new nodes; H
    < x = log ``threshold`` ends the draft. ``ddd_steps``: the draft steps after which it is tested
    (the paper: 5, 7, 9, to save synchronisations; None: each). ``depth`` is the most there can be
    (the paper: 11)."""

    name = "ddd"

    def set_rule(self, config: TreeConfig) -> None:
        self.threshold = BEAM_PROBABILITY if config.threshold is None else config.threshold
        self.steps = None if config.ddd_steps is None else frozenset(config.ddd_steps)
        self.settings: dict[str, Any] = {"ddd_steps": config.ddd_steps and list(config.ddd_steps)}

    def ends(self, level: int, beam_mass: float) -> bool:
        tested = self.steps is None or level in self.steps
        return level >= self.depth or (tested and beam_mass < self.threshold)


class DynamicDepth(_DynamicDepth, GrownBest):
    """The beam keeps nodes that cannot be verified any more, since H counts them."""

    logarithms = True
    whole_beam = True

    def __init__(self, config: TreeConfig) -> None:
        super().__init__(config)
        self.set_rule(config)


class DynamicDepthDrawn(_DynamicDepth, GrownDrawn):
    """The same with drawn children; slots that cannot be verified are not filled."""

    def __init__(self, config: TreeConfig, drawing: Drawing) -> None:
        GrownDrawn.__init__(self, config, drawing)
        self.set_rule(config)


def create(request: TreeRequest) -> DynamicDepth | DynamicDepthDrawn:
    if request.drawing is None:
        return DynamicDepth(request.config)
    return DynamicDepthDrawn(request.config, request.drawing)
