"""The tables of docs/results/trees from its counts (trees.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynaspec_cli.bench.bootstrap import ratio_ci95

SEED = 1
Rows = Sequence[Sequence[Any]]
"""One a prompt: suite, steps, accepted, verified, drawn, distinct, tokens, seconds."""


def column(rows: Rows, index: int) -> list[float]:
    return [float(row[index]) for row in rows]


def emitted(rows: Rows) -> list[float]:
    """Tokens of the steps: those accepted, and the bonus of each."""
    return [float(row[1] + row[2]) for row in rows]


def ratio(
    a: tuple[list[float], list[float]], b: tuple[list[float], list[float]] | None = None
) -> str:
    """sum / sum, over the same of ``b``, with its 95 % interval over prompts."""
    ones = [1.0] * len(a[0])
    below = b or (ones, ones)
    if not sum(a[1]) or not sum(below[0]) or not sum(below[1]):
        return "–"
    value = sum(a[0]) / sum(a[1]) / (sum(below[0]) / sum(below[1]))
    interval = ratio_ci95(a, below, SEED)
    return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def experiment(methods: Mapping[str, Rows], full: Mapping[str, Rows] | None) -> list[str]:
    """A table of one arm: a row a tree."""
    named = {spec.rsplit("+", 1)[-1].split("@")[0]: rows for spec, rows in methods.items()}
    plain = named.pop("ar", None)
    if full:
        named = {"dyspec, filled": next(iter(full.values())), **named}
    lines = [
        "| tree | steps | nodes verified / drawn a step | τ | τ over dyspec's | "
        "tokens/s, over `ar` |",
        "|---|---|---|---|---|---|",
    ]
    reference = named.get("dyspec, filled") or named["dyspec"]
    for name, rows in named.items():
        steps = column(rows, 1)
        total = max(sum(steps), 1)
        same = len(rows) == len(reference)
        speed = "–"
        if plain is not None and len(plain) == len(rows):
            per_second = [(column(r, 6), column(r, 7)) for r in (rows, plain)]
            speed = f"{sum(per_second[0][0]) / sum(per_second[0][1]):.1f}, " + ratio(*per_second)
        against = "1" if rows is reference else "–"
        if same and rows is not reference:
            against = ratio((emitted(rows), steps), (emitted(reference), column(reference, 1)))
        lines.append(
            f"| `{name}` | {sum(steps):.0f} | {sum(column(rows, 3)) / total:.1f} / "
            f"{sum(column(rows, 4)) / total:.1f} | {ratio((emitted(rows), steps))} | {against} | "
            f"{speed} |"
        )
    return lines


def by_text(methods: Mapping[str, Rows]) -> list[str]:
    """τ by text: a row a tree."""
    suites = sorted({str(row[0]) for rows in methods.values() for row in rows})
    lines = ["| τ | " + " | ".join(suites) + " |", "|---" * (len(suites) + 1) + "|"]
    for spec, rows in methods.items():
        if spec == "ar":
            continue
        cells = []
        for suite in suites:
            chosen = [row for row in rows if row[0] == suite]
            steps = sum(column(chosen, 1))
            cells.append(f"{sum(emitted(chosen)) / steps:.2f}" if steps else "–")
        lines.append(f"| `{spec.rsplit('+', 1)[-1]}` | " + " | ".join(cells) + " |")
    return lines


def served(arms: Mapping[str, Any]) -> list[str]:
    """Recommended sampling beside temperature 1, by SPEC."""
    found = [(name, arms.get(f"eagle-{name}")) for name in ("recommended", "t1")]
    lines = ["| | sampling | steps | τ | tokens/s over `ar` |", "|---|---|---|---|---|"]
    for name, arm in found:
        if arm is None:
            continue
        plain = arm["methods"].get("ar")
        for spec, rows in arm["methods"].items():
            if spec == "ar":
                continue
            speed = "–"
            if plain is not None and len(plain) == len(rows):
                speed = ratio(*((column(r, 6), column(r, 7)) for r in (rows, plain)))
            steps = column(rows, 1)
            lines.append(
                f"| `{spec}` | {'as recommended' if name == 'recommended' else 'temperature 1'} | "
                f"{sum(steps):.0f} | {ratio((emitted(rows), steps))} | {speed} |"
            )
    return lines


def speeds(speed: Mapping[str, Any]) -> list[str]:
    """Milliseconds of drawing, growing and finishing a tree."""
    lines = ["| tree | target | 64, 16, 16 | 768, 20, 64 |", "|---|---|---|---|"]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in speed["rows"]:
        drawn = row["draw"] == "sample" or row["temperature"] > 0
        target = f"T = {row['temperature']:g}, " + ("drawn" if drawn else "best tokens")
        cells.setdefault((row["policy"], target), {})[row["size"]] = (
            f"{row['least_ms']:.2f} ({row['steps']:.0f} steps)"
        )
    for (policy, target), by_size in cells.items():
        lines.append(f"| `{policy}` | {target} | {by_size[64]} | {by_size[768]} |")
    return lines


def sections(counts: Mapping[str, Any], arms: Sequence[Any], titles: Mapping[str, str]) -> str:
    measured, lines = counts["arms"], []
    for pair, title in titles.items():
        for arm in arms:
            found = measured.get(f"{pair}-{arm.name}")
            if found is None or not arm.title or arm.name in ("recommended", "t1"):
                continue
            full = measured.get(f"{pair}-{arm.name}-full")
            prompts = max(len(rows) for rows in found["methods"].values())
            tokens = max(found["settings"]["max_new_tokens"].values())
            lines += [
                f"### {title}: {arm.title[0].lower()}{arm.title[1:]}", "",
                f"{prompts} prompts in all, {tokens} new tokens each.", "",
                *experiment(found["methods"], full and full["methods"]), "",
                *by_text(found["methods"]), "",
            ]  # fmt: skip
            if found["settings"]["tree_acceptance"]:
                vector = ", ".join(f"{a:.3g}" for a in found["settings"]["tree_acceptance"])
                lines += [f"Sequoia's acceptance as measured: {vector}.", ""]
    if any(f"eagle-{name}" in measured for name in ("recommended", "t1")):
        lines += ["### Recommended sampling", "", *served(measured), ""]
    if "speed" in counts:
        lines += ["### Milliseconds a tree", "", *speeds(counts["speed"]), ""]
    return "\n".join(lines)


def write(page: Path, counts: Mapping[str, Any], arms: Sequence[Any], titles: Any) -> None:
    """The part of README.md between its two marks, made anew."""
    path = page / "README.md"
    text = path.read_text(encoding="utf-8")
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{path}: expected the marks {begin.strip()} and {end}")
    body = f"{begin}\n{sections(counts, arms, titles)}\n{end}"
    replaced = re.sub(f"{begin}.*{end}", lambda _: body, text, flags=re.DOTALL)
    path.write_text(replaced, encoding="utf-8")
