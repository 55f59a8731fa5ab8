"""SpecInfer's expansion-based tree (arXiv 2305.09781): <k1..km> children per node, level by
level."""

from __future__ import annotations

from collections.abc import Sequence

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.tree.fixed import FixedTree, Plan
from dynaspec_cli.tree.options import SPECINFER_EXPANSION
from dynaspec_cli.tree.request import TreeRequest
from dynaspec_cli.tree.sampled import Drawing


class SpecInfer(FixedTree):
    """For a greedy target the best tokens in order; for a sampling one, k independent draws a node.
    A token drawn twice is verified once, with both draws on record."""

    name = "specinfer"

    def __init__(
        self, config: TreeConfig, expansion: Sequence[int] | None, drawing: Drawing | None
    ) -> None:
        if expansion is None:
            expansion = default_expansion(config)
        nodes, levels = sum(level_sizes(expansion)), len(expansion)
        if nodes > config.size or levels > config.depth:
            raise UsageError(
                f"tree expansion {'x'.join(map(str, expansion))} has {nodes} nodes on {levels} "
                f"levels; raise --tree-size {config.size} and --tree-depth {config.depth}, or "
                "shorten it"
            )
        super().__init__(expansion_plan(expansion), drawing, replacement=True)


def level_sizes(expansion: Sequence[int]) -> list[int]:
    """Nodes on each level."""
    sizes, width = [], 1
    for k in expansion:
        width *= k
        sizes.append(width)
    return sizes


def default_expansion(config: TreeConfig) -> tuple[int, ...]:
    """The paper's expansion, no wider than ``width``, cut after the last level that ``depth`` and
    ``size`` admit."""
    expansion: list[int] = []
    for k in SPECINFER_EXPANSION[: config.depth]:
        longer = [*expansion, min(k, config.width)]
        if sum(level_sizes(longer)) > config.size:
            break
        expansion = longer
    return tuple(expansion)


def expansion_plan(expansion: Sequence[int]) -> Plan:
    children: list[tuple[int, ...]] = []
    start, end = 0, 1
    for k in expansion:
        children += [tuple(range(end + i * k, end + (i + 1) * k)) for i in range(end - start)]
        start, end = end, end + (end - start) * k
    return Plan((*children, *(() for _ in range(end - start))))


def create(request: TreeRequest) -> SpecInfer:
    return SpecInfer(request.config, request.options.expansion, request.drawing)
