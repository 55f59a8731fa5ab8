"""Sequoia's static tree (arXiv 2402.12374): optimal for a given acceptance by position among
siblings.

With a_b the probability that the b-th child tried is the one accepted, a node is worth the product
of a along its path, and the expected tokens of a verification are the sum over all nodes (the root
counts 1). The best tree of each size follows by dynamic programming (section 3.1): F(l, b, n), a
tree of n nodes on at most l levels whose root has b children, is F(l, b - 1, n - m) + a_b G(l - 1,
m) for the best m, where G(l, n) = max_b F(l, b, n).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.tree.fixed import FixedTree, Plan
from dynaspec_cli.tree.request import TreeRequest
from dynaspec_cli.tree.sampled import Drawing


class Sequoia(FixedTree):
    """The optimal plan of at most ``size`` nodes on ``depth`` levels with ``width`` children a
    node. Children are drawn without replacement (sampling target), or are the best tokens in order
    (greedy target)."""

    name = "sequoia"

    def __init__(
        self, config: TreeConfig, acceptance: Sequence[float], drawing: Drawing | None
    ) -> None:
        plan, self.expected_tokens = optimal_plan(
            tuple(acceptance[: config.width]), config.nodes, config.depth
        )
        self.settings = {"tree_acceptance": list(acceptance[: config.width])}
        super().__init__(plan, drawing, replacement=False)


@lru_cache(maxsize=8)  # a policy is made anew for every request
def optimal_plan(acceptance: tuple[float, ...], size: int, depth: int) -> tuple[Plan, float]:
    """(plan, its expected tokens) of the best tree with at most ``size`` nodes below the root on
    ``depth`` levels, each with up to len(acceptance) children. At least one node, even where
    nothing is ever accepted."""
    if all(a >= b for a, b in itertools.pairwise(acceptance)):
        return greedy_plan(acceptance, size, depth)
    return programmed_plan(acceptance, size, depth)


def greedy_plan(acceptance: Sequence[float], size: int, depth: int) -> tuple[Plan, float]:
    """``optimal_plan`` for an acceptance that never rises: values fall along paths and siblings, so
    the most valuable places, taken one by one, are a tree and the best one."""
    # Open places: (-value, order of opening, parent, position among siblings, level).
    opened = itertools.count()
    heap = [(-acceptance[0], next(opened), 0, 0, 1)]
    parents, expected = [-1], 1.0
    while heap and len(parents) <= size:
        negative, _, parent, position, level = heapq.heappop(heap)
        value = -negative
        if value <= 0 and len(parents) > 1:
            break
        place = len(parents)
        parents.append(parent)
        expected += value
        if level < depth:
            heapq.heappush(heap, (negative * acceptance[0], next(opened), place, 0, level + 1))
        if position + 1 < len(acceptance):
            above = value / acceptance[position] if value > 0 else 0.0
            sibling = above * acceptance[position + 1]
            heapq.heappush(heap, (-sibling, next(opened), parent, position + 1, level))
    children: list[list[int]] = [[] for _ in parents]
    for place, parent in enumerate(parents[1:], start=1):
        children[parent].append(place)  # siblings were taken in order
    return _breadth_first(children), expected


def _breadth_first(children: Sequence[Sequence[int]]) -> Plan:
    order = [0]
    for place in order:
        order.extend(children[place])
    number = {place: i for i, place in enumerate(order)}
    return Plan(tuple(tuple(number[child] for child in children[place]) for place in order))


def programmed_plan(acceptance: Sequence[float], size: int, depth: int) -> tuple[Plan, float]:
    """``optimal_plan`` by the dynamic program, for any acceptance: O(depth * children * size^2)."""
    total = size + 1
    # shift[n, m] = n - m where both parts exist; m = 0 or n - m = 0 is no tree.
    counts = torch.arange(total + 1)
    shift = counts[:, None] - counts[None, :]
    possible = (shift >= 1) & (counts[None, :] >= 1)
    shift = shift.clamp(min=0)

    leaf = torch.full((total + 1,), -math.inf, dtype=torch.float64)
    leaf[1] = 1.0
    best_by_level = [leaf]
    # Per level: number of children of the best root by n, and per child the size of its subtree by
    # n.
    children_by_level: list[Tensor] = [torch.zeros(total + 1, dtype=torch.int64)]
    parts_by_level: list[list[Tensor]] = [[]]
    for _ in range(min(depth, size)):
        below, value = best_by_level[-1], leaf
        values, parts = [leaf], []
        for rate in acceptance:
            gain = torch.where(below > -math.inf, rate * below, -math.inf)
            split = torch.where(possible, value[shift] + gain[None, :], -math.inf)
            value, part = split.max(1)
            values.append(value)
            parts.append(part)
        best, children = torch.stack(values).max(0)
        best_by_level.append(best)
        children_by_level.append(children)
        parts_by_level.append(parts)
        if torch.equal(best, below):
            break  # deeper trees gain nothing
    levels = len(best_by_level) - 1
    nodes = 2 + int(best_by_level[levels][2:].argmax())
    plan = _plan(levels, nodes, children_by_level, parts_by_level)
    return plan, float(best_by_level[levels][nodes])


def _plan(
    levels: int, nodes: int, children_by_level: list[Tensor], parts_by_level: list[list[Tensor]]
) -> Plan:
    """Unroll the choices, places in breadth-first order."""
    children: list[tuple[int, ...]] = []
    queue = deque([(levels, nodes)])
    places = 1
    while queue:
        level, n = queue.popleft()
        parts = []
        for b in range(int(children_by_level[level][n]), 0, -1):
            part = int(parts_by_level[level][b - 1][n])
            parts.append(part)
            n -= part
        parts.reverse()
        children.append(tuple(range(places, places + len(parts))))
        places += len(parts)
        queue.extend((level - 1, part) for part in parts)
    return Plan(tuple(children))


def create(request: TreeRequest) -> Sequoia:
    return Sequoia(request.config, request.acceptance, request.drawing)
