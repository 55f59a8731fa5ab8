"""A tree policy's counterpart on the device, and its tree back on the host."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from dynaspec_cli.device import grown, planned
from dynaspec_cli.device.candidates import Candidates, Frontier, Law
from dynaspec_cli.device.draw import DrawRule, Uniforms
from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.protocols import DraftTree, TreePolicy
from dynaspec_cli.sampling.verify import Draw, NodeDraft, SampledDrafts
from dynaspec_cli.tree.ddd import DynamicDepth, DynamicDepthDrawn
from dynaspec_cli.tree.fixed import FixedTree
from dynaspec_cli.tree.grown import GrownBest, GrownDrafts, GrownDrawn
from dynaspec_cli.tree.sampled import Drawing
from dynaspec_cli.unread_tree import UnreadDraws

ROWS, DRAWN, EVER, BAD, USED, STEPS = range(6)
"""Of ``counters``: rows in use, draws, nodes that there ever were, a bad score, uniforms used,
draft steps taken."""
COUNTERS = 6


class Growth(Protocol):
    """Grows trees in fixed shapes: ``begin``, ``grow`` and ``finish`` are functions of tensors;
    ``tree`` reads on the host what ``packed`` brought there."""

    @property
    def depth(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def needs_distribution(self) -> bool: ...

    def rows(self, level: int) -> int:
        """Rows of the frontier whose children level ``level`` (from 0) holds."""
        ...

    def most_uniforms(self) -> int:
        """That a round can need; 0 where nothing is drawn."""
        ...

    def begin(self, root: Tensor, uniforms: Uniforms | None) -> Any: ...

    def grow(self, state: Any, level: int, candidates: Candidates) -> tuple[Any, Frontier | None]:
        """The state with that level, and the next frontier; None after the last level."""
        ...

    def finish(self, state: Any) -> Finished: ...

    def tree(self, packed: Tensor, draws: UnreadDraws | None) -> tuple[DraftTree, int, int]:
        """(the tree, draft steps taken, uniforms used) from ``Finished.packed`` on the host. Raises
        NotFiniteError where a score was NaN, or (drawn) infinite."""
        ...


class Finished(NamedTuple):
    """``packed`` int64 [m]: all that the host must know. ``rows`` and ``draws``: what stays, as in
    ``UnreadTree``."""

    packed: Tensor
    rows: Tensor
    draws: UnreadDraws | None


def growth_of(policy: TreePolicy, shared: bool) -> Growth | None:
    """What does on the device what ``policy`` does; None for a policy that has no such form.
    ``shared``: see ``DraftHeadOutput``."""
    if isinstance(policy, (GrownBest, GrownDrawn)):
        # A subclass of another package may have changed the rules.
        if not type(policy).__module__.startswith("dynaspec_cli.tree."):
            return None
        rule = grown.GrowRule(policy.size, policy.width, policy.depth, policy.least)
        if isinstance(policy, (DynamicDepth, DynamicDepthDrawn)):
            rule = replace(rule, threshold=policy.threshold, tested=policy.steps)
        if isinstance(policy, GrownDrawn):
            drawing = policy.drawing
            return GrownGrowth(
                replace(rule, drawing=draw_rule(drawing), shared=shared), drawing.traversal
            )
        return GrownGrowth(
            replace(rule, logarithms=policy.logarithms, whole_beam=policy.whole_beam)
        )
    if isinstance(policy, FixedTree):
        given = policy.drawing
        rule_ = None if given is None else draw_rule(given)
        plan = planned.PlanRule(policy.plan, rule_, policy.replacement)
        return PlannedGrowth(plan, policy.width, given is not None and given.traversal)
    return None


def draw_rule(drawing: Drawing) -> DrawRule:
    c = drawing.config
    return DrawRule(c.temperature, c.top_k, c.top_p, c.min_p)


RuleT = TypeVar("RuleT", grown.GrowRule, planned.PlanRule)


@dataclass(frozen=True)
class _Ruled(Generic[RuleT]):
    """What a rule alone decides."""

    rule: RuleT

    @property
    def depth(self) -> int:
        return self.rule.depth

    @property
    def needs_distribution(self) -> bool:
        return self.rule.drawing is not None

    def rows(self, level: int) -> int:
        return self.rule.rows(level)


@dataclass(frozen=True)
class GrownGrowth(_Ruled[grown.GrowRule]):
    """``chain``, ``eagle2``, ``ddd`` and ``dyspec``."""

    traversal: bool = False

    @property
    def width(self) -> int:
        return self.rule.width

    def most_uniforms(self) -> int:
        if self.rule.drawing is None:
            return 0
        return sum(self.rows(level) for level in range(self.depth)) * self.width

    def begin(self, root: Tensor, uniforms: Uniforms | None) -> grown.GrowingTree:
        return grown.begin(root, self.rule, uniforms)

    def grow(
        self, state: grown.GrowingTree, level: int, candidates: Candidates
    ) -> tuple[grown.GrowingTree, Frontier | None]:
        state, frontier = grown.grow(state, level, candidates, self.rule)
        return state, None if level + 1 == self.depth else frontier

    def finish(self, state: grown.GrowingTree) -> Finished:
        out = grown.finish(state, self.rule)
        packed = torch.cat([out.counters, out.rows.flatten(), out.values.view(torch.int64)])
        rows = _rows(out.counters, out.rows)
        if self.rule.drawing is None:
            return Finished(packed, rows, None)
        number = torch.arange(1, self.rule.size + 1, device=rows.device)
        row = torch.where(number < out.counters[ROWS], number, -1)
        laws = _stacked(out.laws)
        widths, most = tuple(self.rows(i) for i in range(self.depth)), self.width
        draws = UnreadDraws(
            row, out.rows[2, 1:], out.law, *laws, widths, most, False, self.traversal
        )
        return Finished(packed, rows, draws)

    def tree(self, packed: Tensor, draws: UnreadDraws | None) -> tuple[DraftTree, int, int]:
        counters = _counters(packed)
        n, size = counters[ROWS], self.rule.size + 1
        rows = packed[COUNTERS : COUNTERS + 5 * size].view(5, size)[:, :n].clone()
        values = packed[COUNTERS + 5 * size :].view(torch.float64)[1:n]
        paths = values.exp() if self.rule.logarithms else values
        estimates = tuple(paths.sort(descending=True).values.tolist())
        drafts = None
        if draws is not None:
            nodes = GrownDrafts(rows, _Laws(draws))
            drawn = counters[DRAWN], counters[EVER]
            drafts = SampledDrafts(nodes, False, *drawn, traversal=self.traversal)
        tree = DraftTree(rows[0], rows[1], drafts, estimates)
        return tree, counters[STEPS], counters[USED]


@dataclass(frozen=True)
class PlannedGrowth(_Ruled[planned.PlanRule]):
    """``sequoia`` and ``specinfer``."""

    width: int
    traversal: bool = False

    def most_uniforms(self) -> int:
        if self.rule.drawing is None:
            return 0
        return sum(self.rows(i) * self.rule.most_draws(i) for i in range(self.depth))

    def begin(self, root: Tensor, uniforms: Uniforms | None) -> planned.PlannedTree:
        return planned.begin(root, self.rule, uniforms)

    def grow(
        self, state: planned.PlannedTree, level: int, candidates: Candidates
    ) -> tuple[planned.PlannedTree, Frontier | None]:
        return planned.grow(state, level, candidates, self.rule)

    def finish(self, state: planned.PlannedTree) -> Finished:
        out = planned.finish(state, self.rule)
        packed = torch.cat([out.counters, out.rows.flatten(), out.draws.flatten()])
        rows = _rows(out.counters, out.rows)
        if self.rule.drawing is None:
            return Finished(packed, rows, None)
        column, row = out.draws
        row = torch.where(column < 0, -1, row)
        laws = _stacked(out.laws)
        widths = tuple(self.rows(i) for i in range(self.depth))
        most = max(self.rule.most_draws(i) for i in range(self.depth))
        draws = UnreadDraws(
            row, column, out.rows[2], *laws, widths, most, self.rule.replacement, self.traversal
        )
        return Finished(packed, rows, draws)

    def tree(self, packed: Tensor, draws: UnreadDraws | None) -> tuple[DraftTree, int, int]:
        counters = _counters(packed)
        n, size = counters[ROWS], self.rule.size + 1
        rows = packed[COUNTERS : COUNTERS + 3 * size].view(3, size)[:, :n]
        tokens, parents, law = rows.clone()
        if draws is None:
            return DraftTree(tokens, parents), counters[STEPS], counters[USED]
        drawn = packed[COUNTERS + 3 * size :].view(2, -1)
        nodes = PlannedDrafts(parents, law, drawn, _Laws(draws))
        drafts = SampledDrafts(
            nodes, self.rule.replacement, counters[DRAWN], counters[EVER], self.traversal
        )
        return DraftTree(tokens, parents, drafts), counters[STEPS], counters[USED]


def _counters(packed: Tensor) -> list[int]:
    counters: list[int] = packed[:COUNTERS].tolist()
    if counters[BAD]:
        raise NotFiniteError.of_drafter()
    return counters


def _rows(counters: Tensor, rows: Tensor) -> Tensor:
    """``UnreadTree.rows`` of rows int64 [2 or more, n]: tokens, parents."""
    return torch.cat([counters[ROWS, None], rows[0].clamp(min=0), rows[1]])


def _stacked(laws: Sequence[Law]) -> tuple[Tensor, Tensor]:
    """(ids int64 [L, S], q float32 [f, S]) of each draft step's law, as wide as the widest."""
    widest = max(law.ids.shape[0] for law in laws)
    pad = torch.nn.functional.pad
    ids = [pad(law.ids, (0, widest - law.ids.shape[0]), value=-1) for law in laws]
    q = [pad(law.q, (0, widest - law.q.shape[1])) for law in laws]
    return torch.stack(ids), torch.cat(q)


class _Laws(Sequence[tuple[Tensor, Tensor]]):
    """(ids, q) of each draft step on the host, brought there when asked for: a walk reads few."""

    def __init__(self, draws: UnreadDraws) -> None:
        self._draws = draws
        self._starts = list(accumulate(draws.widths, initial=0))
        self._here: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, step: Any) -> Any:
        if step not in self._here:
            ids, q = self._draws.ids[step], self._draws.q
            q = q[self._starts[step] : self._starts[step + 1]]
            count = int((ids >= 0).sum())
            self._here[step] = (ids[:count].cpu(), q[:, :count].cpu())
        return self._here[step]

    def __len__(self) -> int:
        return len(self._draws.widths)

    def of_row(self, law: int) -> tuple[Tensor, Tensor]:
        """(ids, q [S]) of row ``law`` of all."""
        step = bisect_right(self._starts, law) - 1
        ids, q = self[step]
        return ids, q[law - self._starts[step]]


class PlannedDrafts(Mapping[int, NodeDraft]):
    """The draft of every row that has children, made when asked for. ``law`` int64 [n]: the row of
    all laws that a row's children were drawn from; ``draws`` int64 [2, m]: column and row of each
    draw, in order."""

    def __init__(self, parents: Tensor, law: Tensor, draws: Tensor, laws: _Laws) -> None:
        self._law, self._laws = law.tolist(), laws
        above = parents.tolist()
        self._below: dict[int, list[Draw]] = {}
        for column, row in draws.T.tolist():
            if column >= 0:
                self._below.setdefault(above[row], []).append(Draw(column, row))

    def __getitem__(self, row: int) -> NodeDraft:
        draws = self._below[row]
        return NodeDraft(*self._laws.of_row(self._law[row]), tuple(draws))

    def __iter__(self) -> Iterator[int]:
        return iter(self._below)

    def __len__(self) -> int:
        return len(self._below)
