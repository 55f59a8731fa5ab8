"""Dynamic Depth Decoding (arXiv 2409.00142): EAGLE-2's tree, drafted for as long as its beam is
probable."""

from __future__ import annotations

import math

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import DraftHeadOutput, Frontier
from dynaspec_cli.tree.base import GrowingTree, add_candidates, best_nodes
from dynaspec_cli.tree.eagle2 import Eagle2
from dynaspec_cli.tree.request import TreeRequest

BEAM_PROBABILITY = math.exp(-0.3)
"""The paper's x is the logarithm of this."""


class DynamicDepth(Eagle2):
    """After a draft step, H = log sum_i exp(score_i) over the beam; H < x = log ``threshold`` ends
    the draft. ``steps``: the draft steps after which it is tested (the paper: 5, 7, 9, to save
    synchronisations; None: each), ``depth`` the most there can be (the paper: 11). The beam keeps
    nodes that cannot be verified any more, since H counts them."""

    name = "ddd"

    def __init__(self, config: TreeConfig, steps: tuple[int, ...] | None = None) -> None:
        super().__init__(config)
        self.threshold = BEAM_PROBABILITY if config.threshold is None else config.threshold
        self.steps = None if steps is None else frozenset(steps)

    def grow(self, state: GrowingTree, candidates: DraftHeadOutput) -> Frontier | None:
        fresh = add_candidates(state, candidates, self.width, -math.inf)
        state.offer(fresh, self.size)
        if state.level >= self.depth or not fresh:
            return None
        beam = best_nodes(fresh, self.width)
        if self.steps is None or state.level in self.steps:
            beam_mass = math.fsum(math.exp(state.scores[node]) for node in beam)
            if beam_mass < self.threshold:
                return None
        if state.scores[beam[0]] <= state.bound(self.size):
            return None  # nothing below the beam can be among the best
        return state.expand(beam)


def create(request: TreeRequest) -> DynamicDepth:
    return DynamicDepth(request.config, request.options.ddd_steps)
