"""Pictures of what happens in a step: acceptance, milliseconds, coverage by script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynaspec_cli.bench.report import svg
from dynaspec_cli.bench.report.plot_frame import (
    LEFT,
    RIGHT,
    Plot,
    Row,
    legend,
    percent,
    x_axis,
    y_axis,
)
from dynaspec_cli.bench.scripts import SCRIPTS
from dynaspec_cli.bench.spec import parse_spec
from dynaspec_cli.engine.events import PHASES


def acceptance(rows: Sequence[Row], index: Mapping[str, int]) -> Plot | None:
    drawn = [row for row in rows if row["acceptance_by_position"]]
    if not drawn:
        return None
    body, used = legend([row["method"] for row in drawn], index, 16)
    top, bottom = used + 14, used + 244
    depth = max(len(row["acceptance_by_position"]) for row in drawn)
    across = svg.Scale(1, max(depth, 2), 62, RIGHT - 8, ticks=max(depth, 2))
    across.ticks = [float(i + 1) for i in range(depth)]
    high = max(max(row["acceptance_by_position"]) for row in drawn)
    up = svg.Scale(0, max(high, 0.1), bottom, top)
    body += x_axis(across, top, bottom, lambda v: f"{v:.0f}") + y_axis(up, 62, RIGHT, percent)
    for row in drawn:
        i = index[row["method"]]
        values = row["acceptance_by_position"]
        at = [(across(p + 1), up(v)) for p, v in enumerate(values)]
        if len(at) > 1:
            body.append(svg.path(at, f"s{i % svg.SERIES}"))
        for (x, y), value, position in zip(at, values, range(1, depth + 1), strict=False):
            tip = f"{row['method']}, position {position}: {percent(value)}"
            body.append(svg.marker(x, y, i, tip))
    body.append(svg.text((62 + RIGHT) / 2, bottom + 34, "position below the root", "middle"))
    return Plot(
        "acceptance",
        "Acceptance by position",
        "Conditional: of the steps that accepted i - 1 draft tokens, the share that accepted the "
        "i-th. A path that ended in a leaf counts as not accepted further.",
        svg.picture(bottom + 44, body, "Conditional acceptance by position"),
    )


def phases(rows: Sequence[Row]) -> Plot | None:
    timed = [row for row in rows if row["phase_ms"] and sum(row["phase_ms"].values()) > 0]
    if not timed:
        return None
    body = []
    for i, phase in enumerate(PHASES):
        x, y = 8.0 + (i % 4) * 116, 12.0 + (i // 4) * 20
        body += [svg.rect(x, y - 10, 12, 12, f"f{i}"), svg.text(x + 17, y + 1, phase)]
    top = 52.0
    totals = [sum(row["phase_ms"].values()) for row in timed]
    height = 42.0 * len(timed)
    scale = svg.Scale(0, max(totals), 8, RIGHT)
    body += x_axis(scale, top, top + height, lambda v: f"{v:g}")
    for number, (row, total) in enumerate(zip(timed, totals, strict=True)):
        y = top + 42.0 * number
        per_token = total / (row["mean_acceptance_length"] or 1.0)
        words = f"{row['method']}: {total:.1f} ms a step, {per_token:.1f} ms a token"
        body.append(svg.text(8, y + 15, words, css="halo"))
        x = float(scale(0))
        for i, phase in enumerate(PHASES):
            ms = row["phase_ms"].get(phase, 0.0)
            width = scale(ms) - scale(0)
            body.append(svg.rect(x, y + 20, width, 15, f"f{i}", f"{phase}: {ms:.2f} ms"))
            x += width
    body.append(svg.text((8 + RIGHT) / 2, top + height + 34, "milliseconds a step", "middle"))
    return Plot(
        "phases",
        "Where the milliseconds go",
        "Wall-clock milliseconds by phase, mean a step; a step is one verification (ar: one target "
        "pass). Milliseconds a token are those of a step over tau.",
        svg.picture(top + height + 44, body, "Milliseconds by phase"),
    )


def scripts(rows: Sequence[Row], index: Mapping[str, int]) -> Plot | None:
    drawn = [
        row
        for row in rows
        if row["coverage_by_script"] and parse_spec(row["method"]).shortlist != "full"
    ]
    if not drawn:
        return None
    scripts = [s for s in SCRIPTS if any(s in row["coverage_by_script"] for row in drawn)]
    body, used = legend([row["method"] for row in drawn], index, 16)
    top, pitch = used + 14, max(26.0, 9.0 * len(drawn) + 8)
    height = pitch * len(scripts)
    low = min(v["coverage"] for row in drawn for v in row["coverage_by_script"].values())
    scale = svg.Scale(min(low, 0.9), 1.0, LEFT, RIGHT - 6)
    body += x_axis(scale, top, top + height, percent)
    for number, script in enumerate(scripts):
        y = top + pitch * number
        body.append(svg.text(LEFT - 8, y + pitch / 2 + 4, script, "end"))
        body.append(svg.line(8, y + pitch, RIGHT, y + pitch, "grid"))
        for place, row in enumerate(drawn):
            value = row["coverage_by_script"].get(script)
            if value is None:
                continue
            at = y + (place + 1) * pitch / (len(drawn) + 1)
            tip = f"{script}, {row['method']}: {percent(value['coverage'])} of {value['positions']}"
            body.append(svg.marker(scale(value["coverage"]), at, index[row["method"]], tip, "", 4))
    return Plot(
        "scripts",
        "Coverage by script",
        "Share of verified positions whose target token was in the shortlist, by the script of "
        "that token; code: all tokens of code prompts; common: digits, punctuation, emoji, "
        "fragments.",
        svg.picture(top + height + 24, body, "Coverage by script"),
    )
