"""EAGLE-2's dynamic tree (arXiv 2406.16858): expand a beam, then rerank all candidates."""

from __future__ import annotations

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.base import GrowingTree, add_candidates, best_nodes
from dynaspec_cli.tree.request import TreeRequest


class Eagle2:
    """Each level expands the ``width`` best nodes of the level above into ``width`` children each;
    of all candidates the ``size`` best by path probability are verified (a tie goes to the older
    candidate).

    Scores only fall along a path. So a candidate that is not among the best ``size`` now never will
    be, nor will anything below it: it is not stored and not expanded, and where the whole beam is
    such, drafting stops before ``depth``. The resulting tree is the one that the full procedure
    gives.
    """

    name = "eagle2"
    needs_distribution = False

    def __init__(self, config: TreeConfig) -> None:
        self.size, self.depth, self.width = config.size, config.depth, config.width

    def begin(self, root: int) -> GrowingTree:
        return GrowingTree([root])

    def grow(self, state: GrowingTree, candidates: DraftHeadOutput) -> Frontier | None:
        fresh = add_candidates(state, candidates, self.width, state.bound(self.size))
        state.offer(fresh, self.size)
        if state.level >= self.depth:
            return None
        beam = best_nodes(fresh, self.width)
        bound = state.bound(self.size)
        beam = [node for node in beam if state.scores[node] > bound]
        return state.expand(beam) if beam else None

    def finish(self, state: GrowingTree) -> DraftTree:
        return state.tree(state.chosen())


def create(request: TreeRequest) -> Eagle2:
    return Eagle2(request.config)
