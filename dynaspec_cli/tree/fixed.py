"""Trees whose shape is known before drafting: a plan says how many children each place has."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.base import ROOT
from dynaspec_cli.tree.sampled import Drawing, SampledTree


@dataclass(frozen=True)
class Plan:
    """``children[i]``: the places below place i, in the order of siblings; place 0 is the root."""

    children: tuple[tuple[int, ...], ...]

    @property
    def num_nodes(self) -> int:
        """Places below the root."""
        return len(self.children) - 1

    @property
    def width(self) -> int:
        return max(len(below) for below in self.children)


@dataclass
class PlannedTree(SampledTree):
    """``place``: the plan's place of each node."""

    place: list[int] = field(default_factory=lambda: [ROOT])


class FixedTree:
    """Fills a plan. With a ``drawing`` children are drawn (with or without ``replacement``),
    without one the best tokens are taken in order. Places that get no token (a repeated draw, a
    shortlist smaller than the number of children) stay empty with all below them. Every place with
    children is expanded, however many a level has."""

    name = "fixed"

    def __init__(self, plan: Plan, drawing: Drawing | None, replacement: bool = False) -> None:
        self.plan, self.drawing, self.replacement = plan, drawing, replacement
        self.width = plan.width
        self.needs_distribution = drawing is not None

    def begin(self, root: int) -> PlannedTree:
        return PlannedTree([root])

    def grow(self, state: PlannedTree, candidates: DraftHeadOutput) -> Frontier | None:
        _, best = state.take(candidates)
        counts = [len(self.plan.children[state.place[node]]) for node in state.frontier]
        first = len(state.tokens)
        if self.drawing is None:
            for i, parent in enumerate(state.frontier):
                for position, token in enumerate(best[i][: counts[i]]):
                    self._fill(state, parent, position, token)
        else:
            drawn = self.drawing.draw(candidates, counts, self.replacement)
            for i, parent in enumerate(state.frontier):
                filled: dict[int, int] = {}
                for column, token in zip(drawn.columns[i], drawn.tokens[i], strict=True):
                    if column not in filled:
                        filled[column] = self._fill(state, parent, len(filled), token)
                pairs = [(column, filled[column]) for column in drawn.columns[i]]
                state.record(parent, drawn, i, pairs)
        more = [
            node
            for node in range(first, len(state.tokens))
            if self.plan.children[state.place[node]]
        ]
        return state.expand(more) if more else None

    def finish(self, state: PlannedTree) -> DraftTree:
        nodes = range(ROOT + 1, len(state.tokens))
        if self.drawing is None:
            return state.tree(nodes)
        return state.finished(nodes, self.replacement, self.drawing.traversal)

    def _fill(self, state: PlannedTree, parent: int, position: int, token: int) -> int:
        state.place.append(self.plan.children[state.place[parent]][position])
        return state.add(parent, token, 0.0)
