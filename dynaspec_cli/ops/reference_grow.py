"""Plain references of the ops that grow a draft tree, one call a draft step.

The state of a round lies in two tensors. ``nodes`` int64 [8, capacity]: token, parent, row in the
drafter's cache (-1: not stepped), column of q that the token was drawn from, draft step that the
node was expanded in (-1: none), its row therein, the nodes of the frontier in its order, and
counters (nodes, levels, cache rows, nodes in the frontier, whether some level was shared, draws).
``values`` float64 [2, capacity]: what the path down to the node is worth (its probability, or the
logarithm), and its priority, -inf where it is not among those that would be verified. Node 0 is the
root.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from dynaspec_cli.ops.reference_draw import draw_children

TOKEN, PARENT, CACHE_ROW, COLUMN, STEP, ROW, FRONTIER, COUNTERS = range(8)
COUNT, LEVEL, STEPPED, WIDE, SHARED, DRAWN = range(6)
COUNTER_NAMES = 6


class _Tree:
    """The state as lists, written back by ``store``."""

    def __init__(self, nodes: Tensor, values: Tensor) -> None:
        self.tensors = (nodes, values)
        self.fields = nodes.tolist()
        self.value, self.priority = values.tolist()
        counters = self.fields[COUNTERS]
        self.count, self.level, self.stepped, wide, self.shared, self.drawn = counters[:6]
        self.frontier = self.fields[FRONTIER][:wide]
        for place, node in enumerate(self.frontier):
            self.fields[STEP][node] = self.level
            self.fields[ROW][node] = place
        self.level += 1
        self.first = self.count

    def store(self) -> None:
        self.fields[FRONTIER][: len(self.frontier)] = self.frontier
        counters = [self.count, self.level, self.stepped, len(self.frontier)]
        self.fields[COUNTERS][:6] = [*counters, self.shared, self.drawn]
        nodes, values = self.tensors
        nodes.copy_(torch.tensor(self.fields))
        values.copy_(torch.tensor([self.value, self.priority], dtype=torch.float64))

    def add(self, parent: int, token: int, column: int, value: float, priority: float) -> None:
        node = self.count
        self.count += 1
        for field, entry in enumerate((token, parent, -1, column, -1, -1)):
            self.fields[field][node] = entry
        self.value[node], self.priority[node] = value, priority

    def verified(self, nodes: Iterable[int] | None = None) -> list[int]:
        nodes = range(1, self.count) if nodes is None else nodes
        return [node for node in nodes if self.priority[node] > -math.inf]

    def bound(self, size: int) -> float:
        """A priority at or below this can no longer enter the best ``size`` nodes."""
        kept = [self.priority[node] for node in self.verified()]
        return min(kept) if len(kept) >= size else -math.inf

    def offer(self, size: int, within_level: bool) -> None:
        """Let the level's nodes compete for the best ``size``, a tie going to the older node;
        ``within_level``: for the room that the levels above have left."""
        nodes = self.verified(range(self.first, self.count) if within_level else None)
        room = size - (len(self.verified()) - len(nodes) if within_level else 0)
        for node in sorted(nodes, key=lambda node: (-self.priority[node], node))[room:]:
            self.priority[node] = -math.inf

    def expand(
        self, size: int, width: int, least: float, logarithms: bool, whole_beam: bool
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """(the next frontier; probability of the ``width`` best new nodes)."""
        fresh = range(self.first, self.count)
        beam = sorted(fresh, key=lambda node: (-self.value[node], node))[:width]
        mass = math.fsum(math.exp(self.value[i]) if logarithms else self.value[i] for i in beam)
        floor = self.bound(size)
        worth = [
            self.value[node] > floor and (logarithms or self.value[node] >= least) for node in beam
        ]
        if whole_beam:
            beam = beam if worth and worth[0] else []
        else:
            beam = [node for node, good in zip(beam, worth, strict=True) if good]
        return *self.step(beam), mass

    def step(self, nodes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Make ``nodes`` the frontier: int64 [w'] each, tokens, the parents' cache rows and their
        rows in the last frontier."""
        parents = [self.fields[PARENT][node] for node in nodes]
        rows = [self.fields[TOKEN], self.fields[CACHE_ROW], self.fields[ROW]]
        frontier = torch.tensor(
            [
                [rows[0][node] for node in nodes],
                [rows[1][parent] for parent in parents],
                [rows[2][parent] for parent in parents],
            ],
            dtype=torch.int64,
        )
        for node in nodes:
            self.fields[CACHE_ROW][node] = self.stepped
            self.stepped += 1
        self.frontier = nodes
        return frontier[0], frontier[1], frontier[2]


def _no_frontier() -> tuple[Tensor, Tensor, Tensor]:
    none = torch.empty(0, dtype=torch.int64)
    return none, none, none


def new_tree(token: int, capacity: int, root_value: float) -> tuple[Tensor, Tensor]:
    """(nodes, values) of a tree that is its root; room for ``capacity`` nodes."""
    capacity = max(capacity, COUNTER_NAMES)
    nodes = torch.empty(8, capacity, dtype=torch.int64)
    values = torch.empty(2, capacity, dtype=torch.float64)
    nodes[:, 0] = torch.tensor([token, -1, -1, -1, -1, -1, 0, 1])
    nodes[COUNTERS, 1:COUNTER_NAMES] = torch.tensor([0, 0, 1, 0, 0])
    values[:, 0] = torch.tensor([root_value, -torch.inf], dtype=torch.float64)
    return nodes, values


def grow_best(
    nodes: Tensor,
    values: Tensor,
    log_q: Tensor,
    ids: Tensor,
    size: int,
    width: int,
    least: float,
    logarithms: bool,
    whole_beam: bool,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Take the best tokens of the frontier's nodes: log_q [w, k], ids int64 [w, k], best first, -1
    is padding. At most ``size`` nodes are verified, ``width`` children of a node proposed and
    ``width`` nodes expanded.

    A child is added for as long as its value exceeds the bound that the best ``size`` set and, for
    probabilities (not ``logarithms``), the place it takes (its parent's value times what its elder
    siblings leave) is worth ``least``. ``whole_beam``: candidates that cannot be verified are kept
    and expanded. Returns (int64 [w'] each: the next frontier's tokens, their parents' cache rows
    and rows in the last frontier; probability of the ``width`` best new nodes, NaN where a score
    is). In place.
    """
    tree = _Tree(nodes, values)
    floor = -math.inf if whole_beam else tree.bound(size)
    scores, tokens = log_q.tolist(), ids.tolist()
    for i, parent in enumerate(tree.frontier):
        above, left = tree.value[parent], 1.0
        for log_d, token in list(zip(scores[i], tokens[i], strict=True))[:width]:
            if token < 0:
                break
            if math.isnan(log_d):
                return *_no_frontier(), math.nan
            d = math.exp(min(log_d, 0.0))
            value = above + min(log_d, 0.0) if logarithms else above * d
            if value <= floor or (not logarithms and above * left < least):
                break
            left -= d
            tree.add(parent, token, -1, value, value)
    tree.offer(size, False)
    result = tree.expand(size, width, least, logarithms, whole_beam)
    tree.store()
    return result


def grow_drawn(
    nodes: Tensor,
    values: Tensor,
    log_probs: Tensor,
    log_q: Tensor,
    ids: Tensor,
    uniforms: Tensor,
    size: int,
    least: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    shared: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Draw children of the frontier's nodes without replacement (``draw_children``; uniforms
    float64 [w, width]). A *slot*, the k-th draw below a node, is filled for as long as its value
    exceeds the bound that the best ``size`` set and is at least ``least``, and the most valuable
    slots are kept. ``shared``: the candidates may show what was drawn on other branches, so slots
    compete within their level (docs/methods/exactness.md).

    Returns (the frontier as ``grow_best``; q [w, S]; the new nodes' probability, NaN where a score
    is NaN or infinite). In place.
    """
    tree = _Tree(nodes, values)
    tree.shared |= shared
    width, floor = uniforms.shape[1], tree.bound(size)
    above = [tree.value[node] for node in tree.frontier]
    rests = [max(least, floor) / value if value > 0 else 1.0 for value in above]
    q, columns, tokens, chances, mass = draw_children(
        log_probs,
        log_q[:, 0],
        ids,
        uniforms,
        [width] * len(above),
        rests,
        temperature,
        top_k,
        top_p,
        min_p,
        False,
    )
    if bool(mass.isnan().any()):
        return *_no_frontier(), q, math.nan
    for i, parent in enumerate(tree.frontier):
        left, is_open = 1.0, True
        for column, token, chance in zip(
            columns[i].tolist(), tokens[i].tolist(), chances[i].tolist(), strict=True
        ):
            if column < 0:
                break
            tree.drawn += 1
            slot, d = above[i] * left, float(mass[i]) * chance
            is_open = is_open and slot >= least and slot > floor
            if is_open:
                tree.add(parent, token, column, min(above[i] * d, slot), slot)
                left = max(left - d, 0.0)
    tree.offer(size, bool(tree.shared))
    if tree.shared and len(tree.verified()) >= size:
        frontier, total = _no_frontier(), 0.0
    else:
        *rows, total = tree.expand(size, width, least, False, False)
        frontier = (rows[0], rows[1], rows[2])
    tree.store()
    return *frontier, q, total


def fill_plan(
    nodes: Tensor,
    values: Tensor,
    plan: Tensor,
    places: Tensor,
    tokens: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fill the places of a fixed plan below the frontier's nodes. ``plan`` int64 [2, P]: the first
    place below each place and how many; place 0 is the root's. ``places`` int64 [3, P], in place:
    the first and the last place that each node fills, and the place after each (-1: none).

    ``tokens`` int64 [w, k] go to the places below a node in order, a row up to its first -1 or its
    last place; of equal ``columns`` [w, k] in a row only the first gives a node, which fills the
    places of all and has the children of all. Every new node with places below it is expanded.

    Returns (the frontier as ``grow_best``; int64 [w']: the places below each of its nodes; int64
    [w, k]: the node of each token, -1 behind the last).
    """
    tree = _Tree(nodes, values)
    first, count = plan.tolist()
    head, tail, after = places.tolist()

    def places_of(node: int) -> Iterator[int]:
        place = head[node]
        while place >= 0:
            yield place
            place = after[place]

    below = torch.full_like(tokens, -1)
    for i, parent in enumerate(tree.frontier):
        open_places = [
            place
            for above in places_of(parent)
            for place in range(first[above], first[above] + count[above])
        ]
        filled: dict[int, int] = {}
        draws = zip(open_places, tokens[i].tolist(), columns[i].tolist(), strict=False)
        for j, (place, token, column) in enumerate(draws):
            if token < 0:
                break
            if column in filled:
                node = filled[column]
                after[tail[node]] = place
            else:
                node = filled[column] = tree.count
                tree.add(parent, token, column, 0.0, 0.0)
                head[node] = place
            tail[node], after[place] = place, -1
            tree.drawn += 1
            below[i, j] = node
    fresh = range(tree.first, tree.count)
    wide = {node: sum(count[place] for place in places_of(node)) for node in fresh}
    frontier = tree.step([node for node in fresh if wide[node]])
    tree.store()
    places.copy_(torch.tensor([head, tail, after]))
    counts = torch.tensor([wide[node] for node in tree.frontier], dtype=torch.int64)
    return *frontier, counts, below


def draw_plan(
    nodes: Tensor,
    values: Tensor,
    plan: Tensor,
    places: Tensor,
    log_probs: Tensor,
    ids: Tensor,
    uniforms: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    replacement: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
    """``fill_plan`` with tokens that are drawn (``draw_children``; uniforms float64 [w, k]): as
    many below a node as it has places, k at most.

    Returns (the frontier and the places as ``fill_plan``; q float32 [w, S]; int64 [w, k]: the
    columns of the draws; int64 [w, k]: the node of each, -1 behind the last; False where a score is
    NaN or infinite, and then nothing is filled).
    """
    count, (head, _, after) = plan[1].tolist(), places.tolist()
    wide = int(nodes[COUNTERS, WIDE])
    draws = []
    for node in nodes[FRONTIER, :wide].tolist():
        free, place = 0, head[node]
        while place >= 0:
            free, place = free + count[place], after[place]
        draws.append(min(free, uniforms.shape[1]))
    q, columns, tokens, _, mass = draw_children(
        log_probs,
        log_probs.amax(1),
        ids,
        uniforms,
        draws,
        [0.0] * wide,
        temperature,
        top_k,
        top_p,
        min_p,
        replacement,
    )
    if bool(mass.isnan().any()):
        none = _no_frontier()
        return *none, none[0], q, columns, torch.full_like(columns, -1), False
    *ahead, below = fill_plan(nodes, values, plan, places, tokens, columns)
    return ahead[0], ahead[1], ahead[2], ahead[3], q, columns, below, True


def grown_tree(nodes: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """(int64 [5, n + 1], the root first, parents before their children: token, parent's row (-1),
    column, draft step that expanded it (-1: none), row therein; float64 [n]: what the paths down to
    them are worth, best first; draws so far; nodes below the root so far, discarded ones too)."""
    fields, priorities = nodes.tolist(), values[1].tolist()
    count = fields[COUNTERS][COUNT]
    kept = [0, *(node for node in range(1, count) if priorities[node] > -math.inf)]
    place = {node: row for row, node in enumerate(kept)}
    rows = [[fields[field][node] for node in kept] for field in (TOKEN, COLUMN, STEP, ROW)]
    parents = [-1, *(place[fields[PARENT][node]] for node in kept[1:])]
    paths = values[0, kept[1:]].sort(descending=True).values
    tree = torch.tensor([rows[0], parents, *rows[1:]], dtype=torch.int64)
    return tree, paths, fields[COUNTERS][DRAWN], count - 1
