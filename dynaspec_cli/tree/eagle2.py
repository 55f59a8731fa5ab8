"""EAGLE-2's dynamic tree (arXiv 2406.16858): expand a beam, then rerank all candidates."""

from __future__ import annotations

from dynaspec_cli.tree.grown import GrownBest, GrownDrawn
from dynaspec_cli.tree.request import TreeRequest


class Eagle2(GrownBest):
    """Each level expands the ``width`` best nodes of the level above into ``width`` children each;
    of all candidates the ``size`` best by path probability are verified (a tie goes to the older
    candidate).

    Scores only fall along a path. So a candidate that is not among the best ``size`` now never will
    be, nor will anything below it: it is not stored and not expanded, and where the whole beam is
    such, drafting stops before ``depth``. The resulting tree is the one that the full procedure
    gives.
    """

    name = "eagle2"
    logarithms = True


class Eagle2Drawn(GrownDrawn):
    """The same with drawn children: where the original reranks tokens by path probability, the most
    valuable slots are kept, since a drawn token may not be pruned for what it is."""

    name = "eagle2"


def create(request: TreeRequest) -> Eagle2 | Eagle2Drawn:
    if request.drawing is None:
        return Eagle2(request.config)
    return Eagle2Drawn(request.config, request.drawing)
