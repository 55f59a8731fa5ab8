"""Pictures of ratios: speedup by task, recovery against size, the frontier of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynaspec_cli.bench.report import svg
from dynaspec_cli.bench.report.plot_frame import (
    LEFT,
    RIGHT,
    Plot,
    Row,
    legend,
    percent,
    row_label,
    times,
    tokens,
    x_axis,
    y_axis,
)
from dynaspec_cli.bench.report.tables import label
from dynaspec_cli.bench.report.verdicts import LOSS, speed_tone
from dynaspec_cli.bench.spec import parse_spec
from dynaspec_cli.bench.sweep import pareto_front


def speedup(summary: Mapping[str, Any], index: Mapping[str, int]) -> Plot | None:
    rows = [r for r in summary["rows"] if r["speedup"] is not None and r["method"] != "ar"]
    suites = len({row["suite"] for row in summary["rows"]})
    if not rows:
        return None
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row, suites), []).append(row)
    names = list(dict.fromkeys(row["method"] for row in rows))
    lows = [(r["speedup_ci95"] or [r["speedup"]])[0] for r in rows]
    highs = [(r["speedup_ci95"] or [r["speedup"]])[-1] for r in rows]
    body, used = legend(names, index, 16)
    top = used + 12
    height = sum(12 * len(g) + 14 for g in groups.values())
    scale = svg.Scale(min(0.8, *lows), max(1.2, *highs), LEFT, RIGHT)
    body += x_axis(scale, top, top + height, times)
    body.append(svg.line(scale(1), top, scale(1), top + height, "one"))
    y = top + 7.0
    for name, group in groups.items():
        middle = y + 6 * len(group)
        body += row_label(LEFT - 8, middle + 4, name)
        for row in group:
            y += 12
            series = index[row["method"]]
            lost = speed_tone(row) == LOSS
            if row["speedup_ci95"]:
                ends = [scale(v) for v in row["speedup_ci95"]]
                css = "sloss" if lost else f"s{series % svg.SERIES}"
                body.append(svg.line(ends[0], y - 6, ends[1], y - 6, css, 2))
            tip = f"{name}, {row['method']}: {row['speedup']:.2f}x"
            body.append(
                svg.marker(scale(row["speedup"]), y - 6, series, tip, "floss" if lost else "", 4)
            )
        y += 14
        body.append(svg.line(8, y - 7, RIGHT, y - 7, "grid"))
    return Plot(
        "speedup",
        "Speedup by task",
        "Decode tokens per second over those of ar on the same prompts; bars are paired bootstrap "
        "95 % intervals over prompts. Dashed: ar. Red: slower than ar.",
        svg.picture(top + height + 24, body, "Speedup by task with 95 % intervals"),
    )


def recovery(rows: Sequence[Row]) -> Plot | None:
    series: dict[str, list[Row]] = {}
    for row in rows:
        spec = parse_spec(row["method"])
        if row["recovery"] is None or not row["mean_shortlist_size"]:
            continue
        tree = f"+{spec.tree}" + ("" if spec.nodes is None else f"@{spec.nodes or 'auto'}")
        drafter = f"{spec.drafter}:" if spec.drafter else ""
        series.setdefault(f"{drafter}{spec.shortlist}{tree}", []).append(row)
    if not any(parse_spec(row["method"]).shortlist != "full" for g in series.values() for row in g):
        return None
    index = {name: i for i, name in enumerate(series)}
    body, used = legend(list(series), index, 16)
    top, bottom = used + 14, used + 264
    points = [row for group in series.values() for row in group]
    sizes = [row["mean_shortlist_size"] for row in points]
    lows = [(row["recovery_ci95"] or [row["recovery"]])[0] for row in points]
    highs = [(row["recovery_ci95"] or [row["recovery"]])[-1] for row in points]
    across = svg.Scale(min(sizes) / 1.3, max(sizes) * 1.3, 62, RIGHT, log=True, ticks=8)
    up = svg.Scale(min(lows), max(1.0, *highs), bottom, top)
    body += x_axis(across, top, bottom, tokens) + y_axis(up, 62, RIGHT, percent)
    body.append(svg.line(62, up(1), RIGHT, up(1), "one"))
    for name, group in series.items():
        i = index[name]
        ordered = sorted(group, key=lambda r: float(r["mean_shortlist_size"]))
        at = [(across(r["mean_shortlist_size"]), up(r["recovery"])) for r in ordered]
        if len(at) > 1:
            body.append(svg.path(at, f"s{i % svg.SERIES}"))
        for row, (x, y) in zip(ordered, at, strict=True):
            if row["recovery_ci95"]:
                low, high = (up(v) for v in row["recovery_ci95"])
                body.append(svg.line(x, low, x, high, f"s{i % svg.SERIES}", 1.5))
            tip = f"{row['method']}: {percent(row['recovery'])} at {row['mean_shortlist_size']:.0f}"
            body.append(svg.marker(x, y, i, tip))
    body.append(svg.text((62 + RIGHT) / 2, bottom + 34, "tokens scored a draft step", "middle"))
    return Plot(
        "recovery",
        "Recovery against shortlist size",
        "Mean acceptance length with a shortlist over that with the full vocabulary (same "
        "drafter and tree); across: mean number of tokens scored a draft step. Bars: 95 % "
        "intervals.",
        svg.picture(bottom + 44, body, "Recovery against shortlist size"),
    )


def frontier(rows: Sequence[Row]) -> Plot | None:
    """Steps as points: tokens a second are tau over the step's time, so that up and left is
    faster."""
    points = []
    for row in rows:
        if row["num_spec_steps"] and row["phase_ms"]:
            ms = sum(row["phase_ms"].values())
            if ms > 0:
                points.append((ms, float(row["mean_acceptance_length"]), row))
    if len(points) < 4:
        return None
    series = {parse_spec(row["method"]).shortlist or "" for _, _, row in points}
    index = {name: i for i, name in enumerate(sorted(series))}
    body, used = legend(sorted(series), index, 16)
    top, bottom = used + 26, used + 286
    across = svg.Scale(min(p[0] for p in points), max(p[0] for p in points), 50, RIGHT - 8)
    up = svg.Scale(min(p[1] for p in points), max(p[1] for p in points), bottom, top)
    body += x_axis(across, top, bottom, lambda v: f"{v:g}")
    body += y_axis(up, 50, RIGHT, lambda v: f"{v:g}")
    front = pareto_front([(p[0], p[1]) for p in points])
    body.append(svg.path([(across(points[i][0]), up(points[i][1])) for i in front], "s7"))
    fastest = max(points, key=lambda p: p[1] / p[0])
    for ms, tau, row in points:
        spec = parse_spec(row["method"])
        speed = f"{row['tokens_per_second']:.1f} tokens/s"
        tip = f"{row['method']}: tau {tau:.2f}, {ms:.1f} ms a step, {speed}"
        body.append(svg.marker(across(ms), up(tau), index[spec.shortlist or ""], tip))
    body.append(svg.ring(across(fastest[0]), up(fastest[1])))
    words = f"ring: fastest, {fastest[2]['method']}"
    body.append(svg.text(RIGHT, top - 12, words, "end", "strong"))
    body.append(svg.text((50 + RIGHT) / 2, bottom + 34, "milliseconds a step", "middle"))
    body.append(svg.text(46, top - 12, "tau", "end", "soft"))
    return Plot(
        "frontier",
        "Frontier: acceptance length against the cost of a step",
        "Each point is a method; the line joins those that no other beats in both. Tokens per "
        "second are tau over the time of a step: up and to the left is faster.",
        svg.picture(bottom + 44, body, "Acceptance length against milliseconds a step"),
    )
