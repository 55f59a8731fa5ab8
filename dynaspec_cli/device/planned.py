"""Trees whose shape is known before drafting, in fixed shapes: what ``tree.fixed.FixedTree`` does.

A level has as many *places* as the plan says. Where a token was drawn twice below a node, one node
fills two places and has the children of both, so which row a place belongs to, and which of its
row's draws it takes, depends on the draws: the places of a level are numbered by their parents'
order, and nodes by the first of their places, as the host does it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.device.candidates import Candidates, Frontier, Law
from dynaspec_cli.device.draw import (
    DrawRule,
    Uniforms,
    draw_distinct,
    draw_independent,
    law_of,
)
from dynaspec_cli.device.select import compacted
from dynaspec_cli.tree.fixed import Plan


@dataclass(frozen=True)
class PlanRule:
    """``plan``: in breadth-first order. ``drawing``: how children are drawn, with or without
    ``replacement``; None: the best tokens in order."""

    plan: Plan
    drawing: DrawRule | None = None
    replacement: bool = False
    _tables: dict[torch.device, tuple[_Table, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def levels(self) -> tuple[_Level, ...]:
        """The places below the root, level by level."""
        above: list[int] = [0]
        levels: list[_Level] = []
        while True:
            below = [
                (i, child, j)
                for i, place in enumerate(above)
                for j, child in enumerate(self.plan.children[place])
            ]
            if not below:
                return tuple(levels)
            fruitful = [bool(self.plan.children[child]) for _, child, _ in below]
            parents, ranks = tuple(p for p, _, _ in below), tuple(j for _, _, j in below)
            levels.append(_Level(parents, ranks, tuple(fruitful)))
            above = [child for _, child, _ in below]

    @property
    def depth(self) -> int:
        return len(self.levels)

    @property
    def size(self) -> int:
        return self.plan.num_nodes

    def rows(self, level: int) -> int:
        """Rows of the frontier whose children level ``level`` (from 0) holds."""
        return 1 if level == 0 else sum(self.levels[level - 1].fruitful)

    def tables(self, device: torch.device) -> tuple[_Table, ...]:
        """The levels as tensors; kept, so that a capture meets them ready."""
        if device not in self._tables:
            self._tables[device] = tuple(
                _Table(*(torch.tensor(field, device=device) for field in level))
                for level in self.levels
            )
        return self._tables[device]

    def most_draws(self, level: int) -> int:
        """Of a row there: with replacement a row may have the children of every place."""
        if self.replacement:
            return len(self.levels[level].parents)
        return max(self.levels[level].ranks) + 1


class _Level(NamedTuple):
    """Of each place: its parent, as a number in the level above, its rank among siblings, and
    whether it has children."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    fruitful: tuple[bool, ...]


class _Table(NamedTuple):
    """``_Level``: int64 [n], int64 [n] and bool [n]."""

    parents: Tensor
    ranks: Tensor
    fruitful: Tensor


class PlannedLevel(NamedTuple):
    """Places [n] of a level. ``token``, ``column``, ``row`` (of the frontier that drew them) int64;
    ``first`` int64: the place of the same node that comes first in ``order`` int64, the order of
    creation; ``there`` bool: it got a token; ``expanded`` int64: the node's row in the next
    frontier, -1 for none."""

    token: Tensor
    column: Tensor
    row: Tensor
    first: Tensor
    order: Tensor
    there: Tensor
    expanded: Tensor


class PlannedTree(NamedTuple):
    """A tree under way; ``bad``, ``steps``, ``uniforms`` and ``laws`` as in
    ``grown.GrowingTree``."""

    root: Tensor
    levels: tuple[PlannedLevel, ...]
    live: Tensor
    bad: Tensor
    steps: Tensor
    uniforms: Uniforms | None
    laws: tuple[Law, ...]


class PlannedRows(NamedTuple):
    """A finished tree. ``rows`` int64 [3, size + 1]: token, parent's row, which frontier row of the
    round expanded it (-1: none, and behind the last); ``draws`` int64 [2, size], level by level,
    each in its order: column (-1: none) and the row that holds it; ``counters`` int64 [6] as in
    ``grown.GrownRows``."""

    rows: Tensor
    draws: Tensor
    counters: Tensor
    laws: tuple[Law, ...]


def begin(root: Tensor, rule: PlanRule, uniforms: Uniforms | None) -> PlannedTree:
    """The tree that is its root, int64 [1]."""
    live = torch.ones_like(root, dtype=torch.bool)
    return PlannedTree(root, (), live, ~live[0], root[0] * 0, uniforms, ())


def grow(
    tree: PlannedTree, level: int, candidates: Candidates, rule: PlanRule
) -> tuple[PlannedTree, Frontier | None]:
    """The tree with level ``level`` (from 0), and the next frontier; None after the last level."""
    device, n, rows = tree.root.device, len(rule.levels[level].parents), rule.rows(level)
    parents, ranks, bearing = rule.tables(device)[level]
    tree = tree._replace(steps=tree.steps + tree.live.any())
    if level == 0:
        row, there, key = torch.zeros_like(ranks), tree.live.expand(n), ranks
    else:
        above = tree.levels[-1]
        place = torch.empty_like(above.order).scatter_(
            0, above.order, torch.arange(len(above.order), device=device)
        )
        row = above.expanded[above.first][parents]
        there = above.there[parents] & (row >= 0)
        row = row.clamp(min=0)
        # A node's places follow each other, in their order; then the children of each.
        group = place[above.first] * len(above.order) + place
        key = group[parents] * n + ranks
    order = torch.sort(key.where(there, key.max() + 1), stable=True).indices
    # Which of its row's draws each place takes.
    turn = torch.empty_like(order).scatter_(0, order, torch.arange(n, device=device))
    mine = (row[:, None] == row[None, :]) & there[None, :]
    draw = (mine & (turn[None, :] < turn[:, None])).sum(1)
    tree, column, token, there = _fill(tree, level, candidates, rule, row, draw, there)
    same = mine & (column[:, None] == column[None, :])
    never = torch.full_like(turn, n)
    first = order[torch.where(same & there[None, :], turn[None, :], never).amin(1).clamp(max=n - 1)]
    first = first.where(there, torch.arange(n, device=device))
    bears = (same & (bearing & there)[None, :]).any(1) & there
    lead = bears & (first == torch.arange(n, device=device))
    place = (torch.cumsum(lead[order], 0) - 1)[turn]
    expanded = place.where(lead, -1)
    grown = PlannedLevel(token, column, row, first, order, there, expanded)
    tree = tree._replace(levels=(*tree.levels, grown))
    if level + 1 == rule.depth:
        return tree, None
    wide = rule.rows(level + 1)
    chosen = compacted(lead[order], order, wide)
    live = chosen >= 0
    at = chosen.clamp(min=0)
    frontier = Frontier(token[at].where(live, 0), row[at].where(live, 0), live)
    assert candidates.ids.shape[0] == rows
    return tree._replace(live=live), frontier


def _fill(
    tree: PlannedTree,
    level: int,
    candidates: Candidates,
    rule: PlanRule,
    row: Tensor,
    draw: Tensor,
    there: Tensor,
) -> tuple[PlannedTree, Tensor, Tensor, Tensor]:
    """(the tree, column, token, there) of places that take draw ``draw`` of row ``row``."""
    if rule.drawing is None:
        k = candidates.ids.shape[1]
        token = candidates.ids[row, draw.clamp(max=k - 1)]
        there = there & (draw < k) & (token >= 0)
        bad = tree.bad | (candidates.log_q.isnan().any(1) & tree.live).any()
        return tree._replace(bad=bad), draw, token.where(there, 0), there
    assert tree.uniforms is not None
    rows, k = candidates.log_q.shape[0], rule.most_draws(level)
    law, _, bad = law_of(candidates, tree.live, rule.drawing)
    # The host asks for as many uniforms a row as the row with most draws needs.
    counts = torch.zeros(rows, dtype=torch.int64, device=row.device)
    counts = counts.scatter_add(0, row, there.long())
    given, uniforms = tree.uniforms.take(tree.live, counts.amax(), k)
    if rule.replacement:
        columns = draw_independent(law.q, given)
    else:
        asked = torch.arange(k, device=row.device) < counts[:, None]
        enough = torch.ones_like(given[:, 0])
        columns = draw_distinct(law.q, (law.ids >= 0).sum(), given, enough).where(asked, -1)
    column = columns[row, draw.clamp(max=k - 1)]
    there = there & (column >= 0)
    tree = tree._replace(bad=tree.bad | bad, uniforms=uniforms, laws=(*tree.laws, law))
    return tree, column.where(there, -1), law.ids[column.clamp(min=0)].where(there, 0), there


def finish(tree: PlannedTree, rule: PlanRule) -> PlannedRows:
    """The root and all nodes in the order of their creation."""
    size = rule.size + 1
    whole = torch.ones_like(tree.root)
    tokens, parents, laws, holds, columns = [tree.root], [whole * -1], [whole * 0], [], []
    kept = [whole.bool()]
    start = whole[0] * 0 + 1
    above_row: Tensor | None = None  # of the frontier's rows: their rows in the tree
    wide = 1
    for number_of_level, level in enumerate(tree.levels, start=1):
        lead = level.there & (level.first == torch.arange(len(level.order), device=whole.device))
        in_order = lead[level.order]
        number = torch.cumsum(in_order, 0) - 1 + start
        node = torch.empty_like(level.order).scatter_(0, level.order, number)[level.first]
        parent = whole * 0 if above_row is None else above_row
        tokens.append(level.token[level.order])
        parents.append(parent[level.row][level.order])
        expanded = level.expanded[level.order]
        laws.append(torch.where(expanded >= 0, expanded + wide, -1))
        wide += rule.rows(number_of_level) if number_of_level < rule.depth else 0
        kept.append(in_order)
        there = level.there[level.order]
        columns.append(level.column[level.order].where(there, -1))
        holds.append(node[level.order].where(there, -1))
        start = start + in_order.sum()
        above_row = compacted((level.expanded >= 0)[level.order], node[level.order], size, 0)
    keep = torch.cat(kept)
    rows = torch.stack([compacted(keep, torch.cat(f), size) for f in (tokens, parents, laws)])
    draws = torch.stack([torch.cat(columns), torch.cat(holds)])
    used = start * 0 if tree.uniforms is None else tree.uniforms.used
    counters = [start, (draws[0] >= 0).sum(), start - 1, tree.bad.long(), used, tree.steps]
    return PlannedRows(rows, draws, torch.stack(counters), tree.laws)
