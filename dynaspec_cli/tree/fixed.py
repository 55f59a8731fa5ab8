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
    """``places``: the plan's places that each node fills; more than one where its token was drawn
    more than once."""

    places: list[list[int]] = field(default_factory=lambda: [[ROOT]])


class FixedTree:
    """Fills a plan. With a ``drawing`` children are drawn (with or without ``replacement``),
    without one the best tokens are taken in order. A token that is drawn twice below a node is one
    node with two places, and has the children of both. Places that get no token (a shortlist
    smaller than the number of children) stay empty with all below them. Every place with children
    is expanded, however many a level has."""

    name = "fixed"

    def __init__(self, plan: Plan, drawing: Drawing | None, replacement: bool = False) -> None:
        self.plan, self.drawing, self.replacement = plan, drawing, replacement
        self.width = plan.width
        self.needs_distribution = drawing is not None

    def begin(self, root: int) -> PlannedTree:
        return PlannedTree([root])

    def grow(self, state: PlannedTree, candidates: DraftHeadOutput) -> Frontier | None:
        _, best = state.take(candidates)
        below = [self._below(state.places[node]) for node in state.frontier]
        first = len(state.tokens)
        if self.drawing is None:
            for i, parent in enumerate(state.frontier):
                for place, token in zip(below[i], best[i], strict=False):
                    self._fill(state, parent, place, token)
        else:
            drawn = self.drawing.draw(candidates, [len(b) for b in below], self.replacement)
            for i, parent in enumerate(state.frontier):
                filled: dict[int, int] = {}
                draws = zip(below[i], drawn.columns[i], drawn.tokens[i], strict=False)
                for place, column, token in draws:
                    if column in filled:
                        state.places[filled[column]].append(place)
                    else:
                        filled[column] = self._fill(state, parent, place, token)
                pairs = [(column, filled[column]) for column in drawn.columns[i]]
                state.record(parent, drawn, i, pairs)
        more = [n for n in range(first, len(state.tokens)) if self._below(state.places[n])]
        return state.expand(more) if more else None

    def finish(self, state: PlannedTree) -> DraftTree:
        nodes = range(ROOT + 1, len(state.tokens))
        if self.drawing is None:
            return state.tree(nodes)
        return state.finished(nodes, self.replacement, self.drawing.traversal)

    def _below(self, places: list[int]) -> list[int]:
        """The places of a node's children, in the order in which they are filled."""
        return [child for place in places for child in self.plan.children[place]]

    def _fill(self, state: PlannedTree, parent: int, place: int, token: int) -> int:
        state.places.append([place])
        return state.add(parent, token, 0.0)
