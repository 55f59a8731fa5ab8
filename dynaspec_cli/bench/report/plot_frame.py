"""What the report's pictures share: legends, axes, number formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynaspec_cli.bench.report import svg

Row = Mapping[str, Any]

LEFT, RIGHT = 118, 468
"""Horizontal extent of a plot's area; labels stand left of it."""


@dataclass(frozen=True)
class Plot:
    """``definition`` says how to read it; it is printed under the picture."""

    name: str
    title: str
    definition: str
    svg: str


def legend(names: Sequence[str], index: Mapping[str, int], top: float) -> tuple[list[str], float]:
    """Keys in one or two columns; returns the shapes and the height they took."""
    columns = 2 if all(len(name) <= 26 for name in names) else 1
    body = []
    for i, name in enumerate(names):
        x = 14 + (i % columns) * (svg.WIDTH / columns)
        y = top + (i // columns) * 19
        body += [svg.marker(x, y - 4, index[name], name), svg.text(x + 12, y, name)]
    return body, 19.0 * -(-len(names) // columns) + 8


def x_axis(scale: svg.Scale, top: float, bottom: float, form: Callable[[float], str]) -> list[str]:
    body = [svg.line(scale.start, bottom, scale.stop, bottom, "axis")]
    for tick in scale.ticks:
        x = scale(tick)
        body += [svg.line(x, top, x, bottom, "grid")]
        body += [svg.text(x, bottom + 16, form(tick), "middle", "soft")]
    return body


def y_axis(scale: svg.Scale, left: float, right: float, form: Callable[[float], str]) -> list[str]:
    body = []
    for tick in scale.ticks:
        y = scale(tick)
        body += [svg.line(left, y, right, y, "grid")]
        body += [svg.text(left - 6, y + 4, form(tick), "end", "soft")]
    return body


def times(value: float) -> str:
    return f"{value:g}x"


def percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def tokens(value: float) -> str:
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    return f"{value:.5g}"


def row_label(x: float, y: float, name: str) -> list[str]:
    """A row's name, on two lines where it is long."""
    if len(name) <= 15:
        return [svg.text(x, y, name, "end")]
    cut = max(name.rfind(" ", 0, 16), name.rfind("_", 0, 16) + 1)
    cut = cut if cut > 0 else 15
    return [
        svg.text(x, y - 7, name[:cut].strip(), "end"),
        svg.text(x, y + 8, name[cut:].strip()[:16], "end"),
    ]
