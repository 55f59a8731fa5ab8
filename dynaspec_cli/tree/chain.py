"""The plain chain: at every step the best token, one branch, ``depth`` levels."""

from __future__ import annotations

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.base import ROOT, GrowingTree, add_candidates
from dynaspec_cli.tree.request import TreeRequest


class Chain:
    """``depth`` levels (at most ``size``) of one node each; ``width`` is ignored."""

    name = "chain"
    width = 1
    needs_distribution = False

    def __init__(self, config: TreeConfig) -> None:
        self.depth = min(config.depth, config.size)

    def begin(self, root: int) -> GrowingTree:
        return GrowingTree([root])

    def grow(self, state: GrowingTree, candidates: DraftHeadOutput) -> Frontier | None:
        fresh = add_candidates(state, candidates, 1, float("-inf"))
        if not fresh or state.level >= self.depth:
            return None
        return state.expand([fresh[0][1]])

    def finish(self, state: GrowingTree) -> DraftTree:
        return state.tree(range(ROOT + 1, len(state.tokens)))


def create(request: TreeRequest) -> Chain:
    return Chain(request.config)
