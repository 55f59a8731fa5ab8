"""SpecInfer's expansion-based tree (arXiv 2305.09781): <k1..km> children per node, level by
level."""

from __future__ import annotations

from collections.abc import Sequence

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.tree.fixed import FixedTree, Plan
from dynaspec_cli.tree.request import TreeRequest
from dynaspec_cli.tree.sampled import Drawing

EXPANSION_LEVELS = 8
BRANCHING_LEVEL = 3
"""The paper's default <1, 1, 3, 1, 1, 1, 1, 1> (section 6.1) branches at its third of eight
levels."""


class SpecInfer(FixedTree):
    """The best tokens in order, or k independent draws a node. A token drawn twice is verified
    once, with both draws on record."""

    name = "specinfer"

    def __init__(self, config: TreeConfig, drawing: Drawing | None) -> None:
        super().__init__(_plan(config), drawing, replacement=True)


def _plan(config: TreeConfig) -> Plan:
    if config.expansion is None:
        return default_plan(config)
    nodes, levels = sum(level_sizes(config.expansion)), len(config.expansion)
    if nodes > config.nodes or levels > config.depth:
        raise UsageError(
            f"--tree-expansion {','.join(map(str, config.expansion))}: expected at most "
            f"--tree-size {config.nodes} nodes on --tree-depth {config.depth} levels, got {nodes} "
            f"on {levels}"
        )
    return expansion_plan(config.expansion)


def level_sizes(expansion: Sequence[int]) -> list[int]:
    """Nodes on each level."""
    sizes, width = [], 1
    for k in expansion:
        width *= k
        sizes.append(width)
    return sizes


def default_plan(config: TreeConfig) -> Plan:
    """The paper's tree with as many branches as ``size`` asks for: <1, 1, k, 1, ...> on at most
    ``depth`` levels with the least k that has ``size`` places, its last branch cut to have no more.
    Where k would exceed ``width``, the levels above branch too, the second before the first. At
    20 places, 8 levels and 3 children it is the paper's.
    """
    levels = min(config.depth, EXPANSION_LEVELS)
    expansion = [1] * levels
    for level in range(min(BRANCHING_LEVEL, levels) - 1, -1, -1):
        while expansion[level] < config.width and sum(level_sizes(expansion)) < config.nodes:
            expansion[level] += 1
    return first_places(expansion_plan(expansion), config.nodes)


def first_places(plan: Plan, count: int) -> Plan:
    """A plan's first ``count`` places below the root, branch after branch."""
    kept: set[int] = set()
    stack = [0]
    while stack and len(kept) <= count:
        place = stack.pop()
        kept.add(place)
        stack.extend(reversed(plan.children[place]))
    number = {place: i for i, place in enumerate(sorted(kept))}
    return Plan(
        tuple(
            tuple(number[child] for child in plan.children[place] if child in kept)
            for place in sorted(kept)
        )
    )


def expansion_plan(expansion: Sequence[int]) -> Plan:
    children: list[tuple[int, ...]] = []
    start, end = 0, 1
    for k in expansion:
        children += [tuple(range(end + i * k, end + (i + 1) * k)) for i in range(end - start)]
        start, end = end, end + (end - start) * k
    return Plan((*children, *(() for _ in range(end - start))))


def create(request: TreeRequest) -> SpecInfer:
    return SpecInfer(request.config, request.drawing)
