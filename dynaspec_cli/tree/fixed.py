"""Trees whose shape is known before drafting: a plan says how many children each place has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.ops.grow import draw_plan, fill_plan, grown_tree, new_tree
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.sampling.verify import Draw, NodeDraft, SampledDrafts
from dynaspec_cli.tree.grown import GrownTree
from dynaspec_cli.tree.sampled import Drawing


@dataclass(frozen=True)
class Plan:
    """``children[i]``: the places below place i, in the order of siblings and of places; place 0
    is the root."""

    children: tuple[tuple[int, ...], ...]

    def ranges(self) -> Tensor:
        """Int64 [2, P]: the first place below each place, and how many."""
        first = [below[0] if below else 0 for below in self.children]
        return torch.tensor([first, [len(below) for below in self.children]])

    @property
    def num_nodes(self) -> int:
        """Places below the root."""
        return len(self.children) - 1

    @property
    def width(self) -> int:
        return max(len(below) for below in self.children)


@dataclass
class PlannedTree(GrownTree):
    """``places`` int64 [3, P], which places a node fills (``ops.fill_plan``). ``counts``: places
    below each node of the frontier; ``draws``: of each draft step, columns and nodes [w, k]."""

    places: Tensor = field(default_factory=lambda: torch.empty(3, 0, dtype=torch.int64))
    counts: list[int] = field(default_factory=list)
    draws: list[tuple[Tensor, Tensor]] = field(default_factory=list)


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
        self._ranges = plan.ranges()

    def begin(self, root: int) -> PlannedTree:
        places = torch.full((3, len(self.plan.children)), -1, dtype=torch.int64)
        places[:2, 0] = 0
        nodes, values = new_tree(root, places.shape[1], 1.0)
        return PlannedTree(nodes, values, places=places, counts=[len(self.plan.children[0])])

    def grow(self, state: PlannedTree, candidates: DraftHeadOutput) -> Frontier | None:
        state.check(candidates)
        filling = (state.nodes, state.values, self._ranges, state.places)
        if self.drawing is None:
            ids = candidates.ids.cpu()
            tokens, parents, source, counts, _ = fill_plan(*filling, ids, ids)
        else:
            law, filters = self.drawing.law(candidates), self.drawing.filters
            uniforms = law.uniforms(self.drawing.source, state.counts, self.replacement)
            tokens, parents, source, counts, q, columns, below, sound = draw_plan(
                *filling, law.log_probs, law.ids, uniforms, *filters, self.replacement
            )
            if not sound:
                raise NotFiniteError.of_drafter()
            state.laws.append((law.ids, q))
            state.draws.append((columns, below))
        state.counts = counts.tolist()
        return state.advance(tokens, parents, source, candidates.ids.device)

    def finish(self, state: PlannedTree) -> DraftTree:
        rows, _, drawn, distinct = grown_tree(state.nodes, state.values)
        if self.drawing is None:
            return DraftTree(rows[0], rows[1])
        drafts = SampledDrafts(
            PlannedDrafts(rows, state), self.replacement, drawn, distinct, self.drawing.traversal
        )
        return DraftTree(rows[0], rows[1], drafts)


class PlannedDrafts(Mapping[int, NodeDraft]):
    """The draft of every row that has children, made when asked for: a walk visits few rows. All
    nodes are verified, so a node's number is its row. ``rows`` as ``ops.grown_tree`` gives them."""

    def __init__(self, rows: Tensor, state: PlannedTree) -> None:
        self._parents, _, self._steps, self._places = rows[1:].tolist()
        self._laws, self._draws = state.laws, state.draws

    def __getitem__(self, row: int) -> NodeDraft:
        step = self._steps[row] if 0 <= row < len(self._steps) else -1
        if step < 0:
            raise KeyError(row)
        place, (ids, q) = self._places[row], self._laws[step]
        columns, below = (each[place].tolist() for each in self._draws[step])
        draws = tuple(Draw(*pair) for pair in zip(columns, below, strict=True) if pair[1] >= 0)
        if not draws:
            raise KeyError(row)
        return NodeDraft(ids, q[place], draws)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted({parent for parent in self._parents if parent >= 0}))

    def __len__(self) -> int:
        return len({parent for parent in self._parents if parent >= 0})
