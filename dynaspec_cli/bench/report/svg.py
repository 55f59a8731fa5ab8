"""A few SVG shapes. Colours are CSS classes, so that one picture serves light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 480
"""Units across; text of 13 units stays readable when a phone shows the picture 350 pixels wide."""

SERIES = 8
"""Distinct colours; beyond them colours repeat with another marker."""

_LIGHT = ("#2563eb", "#0f766e", "#b45309", "#7c3aed", "#4d7c0f", "#0891b2", "#a21caf", "#57534e")
_DARK = ("#7aa7ff", "#4fd1c0", "#f5b14c", "#b79bff", "#a3d65c", "#5cd2ee", "#ee8bf5", "#b8b0a8")


_LIGHT_PAGE = {
    "ink": "#1c1917",
    "soft": "#57534e",
    "paper": "#fdfdfc",
    "panel": "#f5f4f2",
    "line": "#d6d3d1",
    "loss": "#c01c1c",
    "win": "#166534",
}
_DARK_PAGE = {
    "ink": "#e8e6e3",
    "soft": "#a8a29e",
    "paper": "#17181a",
    "panel": "#1f2124",
    "line": "#3a3d42",
    "loss": "#ff7b72",
    "win": "#6fdd8b",
}


def theme(dark: bool) -> str:
    """CSS variables of one scheme: ``--ink``, ``--paper``, ``--line``, ``--loss``, ``--c0`` ..."""
    page = "".join(f"--{k}:{v};" for k, v in (_DARK_PAGE if dark else _LIGHT_PAGE).items())
    return page + "".join(f"--c{i}:{c};" for i, c in enumerate(_DARK if dark else _LIGHT))


def style() -> str:
    """Classes of the shapes below: fill ``f0`` ..., stroke ``s0`` ..., ``axis``, ``grid``,
    ``loss``."""
    series = "".join(f".f{i}{{fill:var(--c{i})}}.s{i}{{stroke:var(--c{i})}}" for i in range(SERIES))
    return (
        "svg.plot text{font:13px system-ui,sans-serif;fill:var(--ink)}"
        "svg.plot .soft{fill:var(--soft);font-size:12px}"
        "svg.plot .strong{font-weight:600}"
        "svg.plot .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px}"
        ".grid{stroke:var(--line);stroke-width:1}"
        ".axis{stroke:var(--soft);stroke-width:1}"
        ".one{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 3}"
        ".path,.ring{fill:none;stroke-width:2}"
        ".ring{stroke:var(--ink);stroke-width:1.5}"
        ".floss,svg.plot text.floss{fill:var(--loss)}"
        ".sloss{stroke:var(--loss)}" + series
    )


def picture(height: float, body: Sequence[str], title: str) -> str:
    """An ``<svg>`` element that scales to its container; ``title`` is read out by screen
    readers."""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{"".join(body)}</svg>'
    )


def standalone(svg: str) -> str:
    """The same picture as a file of its own, light or dark as its reader prefers."""
    css = (
        f"svg{{{theme(False)}background:var(--paper)}}@media "
        f"(prefers-color-scheme:dark){{svg{{{theme(True)}}}}}{style()}"
    )
    head, tail = svg.split(">", 1)
    return f"{head}><style>{css}</style>{tail}\n"


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    attributes = f' class="{css}"' if css else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str, width: float | None = None) -> str:
    stroke = "" if width is None else f' stroke-width="{width}"'
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"{stroke}/>'


def rect(x: float, y: float, width: float, height: float, css: str, title: str = "") -> str:
    tip = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" '
        f'class="{css}">{tip}</rect>'
    )


def path(points: Sequence[tuple[float, float]], css: str) -> str:
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="{d}" class="path {css}"/>'


def marker(x: float, y: float, series: int, title: str, css: str = "", size: float = 4.5) -> str:
    """Circle, square, diamond or triangle: series are told apart without colour too."""
    tip = f"<title>{escape(title)}</title>"
    fill = css or f"f{series % SERIES}"
    kind = (series + series // SERIES) % 4
    if kind == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="{fill}">{tip}</circle>'
    s = size
    shapes = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -s * 1.35), (s * 1.35, 0), (0, s * 1.35), (-s * 1.35, 0)],
        3: [(0, -s * 1.25), (s * 1.15, s), (-s * 1.15, s)],
    }
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return f'<polygon points="{corners}" class="{fill}">{tip}</polygon>'


def ring(x: float, y: float) -> str:
    """A circle around a marker."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" class="ring"/>'


class Scale:
    """A linear or base-2 logarithmic map from values to units, with round ticks."""

    def __init__(
        self, low: float, high: float, start: float, stop: float, log: bool = False, ticks: int = 5
    ):
        self.log = log
        self.start, self.stop = start, stop
        if log:
            self._low, self._high = math.log2(low), math.log2(high)
            if self._high - self._low < 1e-9:
                self._low, self._high = self._low - 1, self._high + 1
            first, last = math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9)
            stride = max(1, math.ceil((last - first) / max(ticks, 1)))
            self.ticks = [2.0**p for p in range(first, last + 1, stride)]
            return
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        step = _round_step((high - low) / ticks)
        self._low, self._high = math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step
        count = round((self._high - self._low) / step)
        self.ticks = [self._low + i * step for i in range(count + 1)]

    def __call__(self, value: float) -> float:
        at = math.log2(value) if self.log else value
        share = (at - self._low) / (self._high - self._low)
        return self.start + share * (self.stop - self.start)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * (1 - 1e-9))
