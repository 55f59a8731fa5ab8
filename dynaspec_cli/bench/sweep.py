"""``--sweep shortlist-size=512,1024 --sweep tree-size=8,16``: the grid, and its frontier."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from dynaspec_cli.bench.spec import MethodSpec
from dynaspec_cli.errors import UsageError

AXES = ("shortlist-size", "tree-size")


def parse_sweeps(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Axis -> values; UsageError where an axis is unknown, named twice, or a value is no number."""
    axes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or name not in AXES:
            raise UsageError(
                f"--sweep {text}: expected AXIS=N,N,... with AXIS one of {', '.join(AXES)}"
            )
        if name in axes:
            raise UsageError(f"--sweep {name}: expected each axis once, got it twice")
        numbers = []
        for value in values.split(","):
            if not value.strip().isdecimal() or int(value) < 1:
                raise UsageError(f"--sweep {name}: expected whole numbers from 1, got '{value}'")
            numbers.append(int(value))
        if len(set(numbers)) != len(numbers):
            raise UsageError(f"--sweep {name}: expected each value once, got {values}")
        axes[name] = tuple(numbers)
    return axes


def expand(specs: Sequence[MethodSpec], sweeps: Sequence[str]) -> list[MethodSpec]:
    """Every speculative spec at every point of the grid, in order, duplicates removed.

    ``full`` has no size and is expanded over tree sizes alone; ``ar`` and peers stay as they are.
    """
    axes = parse_sweeps(sweeps)
    if not axes:
        return list(specs)
    if all(spec.kind != "speculative" for spec in specs):
        raise UsageError("--sweep: expected at least one --method with a tree, got none")
    grid: list[MethodSpec] = []
    for spec in specs:
        if spec.kind != "speculative":
            grid.append(spec)
            continue
        sizes: tuple[int | None, ...] = axes.get("shortlist-size", (spec.shortlist_size,))
        nodes: tuple[int | None, ...] = axes.get("tree-size", (spec.nodes,))
        if spec.shortlist == "full":
            sizes = (None,)
        for size, count in itertools.product(sizes, nodes):
            grid.append(replace(spec, shortlist_size=size, nodes=count))
    return list(dict.fromkeys(grid))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (cost, gain) points that no other point beats in both, by rising cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    best = float("-inf")
    for i in order:
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front
