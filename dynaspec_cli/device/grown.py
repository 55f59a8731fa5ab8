"""Trees that grow where the drafter's probabilities are large, in fixed shapes.

What ``ops.grow_best`` and ``ops.grow_drawn`` do on the host (ops/reference_grow.py), which add as
many nodes as deserve it, is done here for every place where a node could be: ``width`` below the
root, ``width * width`` on each level below, in the host's order of creation. A place is a node, or
it is empty. So both number the nodes alike, ties fall alike, and what is kept is the same tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.device.candidates import Candidates, Frontier, Law
from dynaspec_cli.device.draw import DrawRule, Uniforms, draw_children
from dynaspec_cli.device.select import best, compacted, ranks, up_to_first_false

NONE = -math.inf


@dataclass(frozen=True)
class GrowRule:
    """``size``: nodes that are verified; ``width``: children of a node, and nodes expanded a level;
    ``depth``: levels. ``least``: value below which nothing is drafted. ``logarithms``,
    ``whole_beam``: as in ``ops.grow_best``. ``threshold``: the probability of the beam below which
    drafting ends, tested after the draft steps ``tested`` (None: each); None: never.

    ``drawing``: how children are drawn; None: the best tokens are taken. ``shared``: the frontier's
    tokens have a say in the shortlist (``DraftHeadOutput.shared``).
    """

    size: int
    width: int
    depth: int
    least: float = 0.0
    logarithms: bool = False
    whole_beam: bool = False
    threshold: float | None = None
    tested: frozenset[int] | None = None
    drawing: DrawRule | None = None
    shared: bool = False

    def rows(self, level: int) -> int:
        """Rows of the frontier whose children level ``level`` (from 0) holds."""
        return 1 if level == 0 else self.width


class GrowingTree(NamedTuple):
    """A tree under way. A column a place, the root first: int64 ``token``, ``parent`` (a place),
    ``column`` of q, ``step`` that expanded it and its ``row`` therein (-1: none); float64 ``value``
    and ``priority`` (-inf: not verified); bool ``there``.

    ``frontier`` int64 [w], ``live`` bool [w]: places that are expanded next. ``bad`` bool []: a
    score was NaN, or (drawn) infinite. int64 []: ``drawn``, draws so far, and ``steps``, those with
    a live row. ``uniforms``: what is left of them. ``laws``: of each level, where children are
    drawn.
    """

    token: Tensor
    parent: Tensor
    column: Tensor
    step: Tensor
    row: Tensor
    value: Tensor
    priority: Tensor
    there: Tensor
    frontier: Tensor
    live: Tensor
    bad: Tensor
    drawn: Tensor
    steps: Tensor
    uniforms: Uniforms | None
    laws: tuple[Law, ...]


class GrownRows(NamedTuple):
    """A finished tree: ``rows`` int64 [5, size + 1] as ``ops.grown_tree`` gives them, -1 behind the
    last; ``law`` int64 [size + 1]: which frontier row of the round expanded each, -1 for none;
    ``values`` float64 [size + 1], of their paths; ``counters`` int64 [6]: rows in use, draws,
    nodes that there ever were, whether a score was bad, uniforms used, draft steps taken."""

    rows: Tensor
    law: Tensor
    values: Tensor
    counters: Tensor
    laws: tuple[Law, ...]


def begin(root: Tensor, rule: GrowRule, uniforms: Uniforms | None) -> GrowingTree:
    """The tree that is its root, int64 [1]."""

    def whole(value: int) -> Tensor:
        return torch.full_like(root, value)

    nothing = whole(0)
    floats = root.double() * 0
    return GrowingTree(
        token=root,
        parent=whole(-1),
        column=whole(-1),
        step=whole(0),
        row=whole(0),
        value=floats + (0.0 if rule.logarithms else 1.0),
        priority=floats + NONE,
        there=whole(1).bool(),
        frontier=nothing,
        live=whole(1).bool(),
        bad=nothing[0].bool(),
        drawn=nothing[0],
        steps=nothing[0],
        uniforms=uniforms,
        laws=(),
    )


def grow(
    tree: GrowingTree, level: int, candidates: Candidates, rule: GrowRule
) -> tuple[GrowingTree, Frontier]:
    """The tree with level ``level`` (from 0), and the next frontier, of ``width`` rows."""
    add = _best_children if rule.drawing is None else _drawn_children
    tree = tree._replace(steps=tree.steps + tree.live.any())
    first = tree.token.shape[0]
    tree, fresh = add(tree, candidates, rule)
    w, k = fresh.token.shape
    pad = rule.width - k

    def joined(old: Tensor, new: Tensor, empty: float) -> Tensor:
        new = torch.nn.functional.pad(new, (0, pad), value=empty) if pad else new
        return torch.cat([old, new.flatten()])

    tree = tree._replace(
        token=joined(tree.token, fresh.token, 0),
        parent=joined(tree.parent, tree.frontier[:, None].expand(w, k), 0),
        column=joined(tree.column, fresh.column, -1),
        step=joined(tree.step, torch.full_like(fresh.token, -1), -1),
        row=joined(tree.row, torch.full_like(fresh.token, -1), -1),
        value=joined(tree.value, fresh.value, NONE),
        priority=joined(tree.priority, fresh.priority.where(fresh.there, NONE), NONE),
        there=joined(tree.there, fresh.there, 0).bool(),
    )
    tree = _offer(tree, first, rule)
    return _expand(tree, first, level, rule)


class _Fresh(NamedTuple):
    """New places [w, k] of a level."""

    token: Tensor
    column: Tensor
    value: Tensor
    priority: Tensor
    there: Tensor


def _best_children(
    tree: GrowingTree, candidates: Candidates, rule: GrowRule
) -> tuple[GrowingTree, _Fresh]:
    floor = tree.value.new_full((), NONE) if rule.whole_beam else _bound(tree.priority, rule.size)
    ids = candidates.ids[:, : rule.width]
    log_d = candidates.log_q[:, : rule.width].double()
    here = up_to_first_false(tree.live[:, None] & (ids >= 0))
    bad = tree.bad | (here & log_d.isnan()).any()
    log_d = log_d.clamp(max=0.0)
    above = tree.value[tree.frontier][:, None]
    if rule.logarithms:
        value = above + log_d
        good = here & (value > floor)
    else:
        d = log_d.exp()
        value = above * d
        good = here & (value > floor) & (above * _left(d) >= rule.least)
    there = up_to_first_false(good)
    token = ids.where(there, 0)
    return tree._replace(bad=bad), _Fresh(token, torch.full_like(ids, -1), value, value, there)


def _drawn_children(
    tree: GrowingTree, candidates: Candidates, rule: GrowRule
) -> tuple[GrowingTree, _Fresh]:
    assert rule.drawing is not None
    assert tree.uniforms is not None
    floor = _bound(tree.priority, rule.size)
    above = tree.value[tree.frontier]
    rest = torch.where(above > 0, floor.clamp(min=rule.least) / above, 1.0)
    draws, uniforms, law = draw_children(
        candidates, tree.live, tree.uniforms, rule.width, rest, rule.drawing
    )
    drawn = draws.columns >= 0
    d = draws.mass[:, None] * draws.chances
    slot = above[:, None] * _left(d).clamp(min=0.0)
    there = up_to_first_false(drawn & (slot >= rule.least) & (slot > floor))
    value = torch.minimum(above[:, None] * d, slot)
    tree = tree._replace(
        bad=tree.bad | draws.bad,
        drawn=tree.drawn + drawn.sum(),
        uniforms=uniforms,
        laws=(*tree.laws, law),
    )
    return tree, _Fresh(draws.tokens.where(there, 0), draws.columns, value, slot, there)


def _left(d: Tensor) -> Tensor:
    """[w, k]: 1 less what elder siblings hold of d [w, k], summed in their order."""
    return torch.cat([torch.ones_like(d[:, :1]), -d[:, :-1]], 1).cumsum(1)


def _bound(priority: Tensor, size: int) -> Tensor:
    """[]: a priority at or below this can no longer enter the best ``size``."""
    if priority.shape[0] < size:
        return priority.new_full((), NONE)
    return torch.topk(priority, size).values[-1]


def _offer(tree: GrowingTree, first: int, rule: GrowRule) -> GrowingTree:
    """Let the places from ``first`` on compete for the best ``size``."""
    priority = tree.priority
    if rule.drawing is None or not rule.shared:
        kept = ranks(priority) < rule.size
        return tree._replace(priority=priority.where(kept, NONE))
    old, new = priority[:first], priority[first:]
    room = rule.size - (old > NONE).sum()
    return tree._replace(priority=torch.cat([old, new.where(ranks(new) < room, NONE)]))


def _expand(
    tree: GrowingTree, first: int, level: int, rule: GrowRule
) -> tuple[GrowingTree, Frontier]:
    values = tree.value.where(tree.there, NONE)[first:]
    beam = best(values, rule.width) + first
    value, there = tree.value[beam], tree.there[beam]
    floor = _bound(tree.priority, rule.size)
    worth = there & (value > floor)
    if not rule.logarithms:
        worth = worth & (value >= rule.least)
    live = there & worth[0] if rule.whole_beam else worth
    if rule.threshold is not None and (rule.tested is None or level + 1 in rule.tested):
        mass = (value.exp() if rule.logarithms else value).where(there, 0.0).sum()
        live = live & (mass >= rule.threshold)
    if rule.drawing is not None and rule.shared:
        live = live & ((tree.priority > NONE).sum() < rule.size)
    places = torch.arange(rule.width, device=beam.device)
    source = tree.row[tree.parent[beam]].where(live, 0)
    tree = tree._replace(
        step=tree.step.scatter(0, beam, tree.step[beam].where(~live, level + 1)),
        row=tree.row.scatter(0, beam, torch.where(live, places, tree.row[beam])),
        frontier=beam,
        live=live,
    )
    return tree, Frontier(tree.token[beam].where(live, 0), source, live)


def finish(tree: GrowingTree, rule: GrowRule) -> GrownRows:
    """The root and the places that are verified, in order."""
    kept = tree.priority > NONE
    kept = torch.cat([torch.ones_like(kept[:1]), kept[1:]])
    place = torch.cumsum(kept, 0) - 1
    parent = torch.cat([tree.parent[:1], place[tree.parent[1:]]])
    size = rule.size + 1
    fields = (tree.token, parent, tree.column, tree.step, tree.row)
    rows = torch.stack([compacted(kept, field, size) for field in fields])
    values = compacted(kept, tree.value, size)
    used = tree.drawn * 0 if tree.uniforms is None else tree.uniforms.used
    counters = [kept.sum(), tree.drawn, tree.there.sum() - 1, tree.bad.long(), used, tree.steps]
    step, row = rows[3], rows[4]
    law = torch.where(step > 0, 1 + (step - 1) * rule.width + row, 0)
    # The last level's beam has a step that is never taken.
    law = law.where((step >= 0) & (step < rule.depth), -1)
    return GrownRows(rows, law, values, torch.stack(counters), tree.laws)
