"""The report's tables, once for Markdown and HTML. Definitions travel with the columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynaspec_cli.bench.report import verdicts
from dynaspec_cli.bench.scripts import SCRIPTS
from dynaspec_cli.engine.events import PHASES

Row = Mapping[str, Any]

NONE = "-"


@dataclass(frozen=True)
class Cell:
    """``tone`` is "win", "loss" or "even"."""

    text: str
    tone: str = verdicts.EVEN


@dataclass(frozen=True)
class Table:
    """``columns`` are (name, definition); the first column names the row."""

    title: str
    definition: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def with_interval(value: float | None, interval: Sequence[float] | None, scale: float = 1.0) -> str:
    if value is None:
        return NONE
    digits = 2 if scale == 1.0 else 1
    text = f"{scale * value:.{digits}f}"
    if interval is None or interval[0] == interval[1] == value:
        return text
    return f"{text} [{scale * interval[0]:.{digits}f}, {scale * interval[1]:.{digits}f}]"


def label(row: Row, suites: int) -> str:
    """A task's name, with its suite where the run had several."""
    return str(row["task"]) if suites == 1 else f"{row['task']} ({row['suite']})"


def headline_table(summary: Mapping[str, Any]) -> Table:
    """Every method over all prompts."""
    columns = (
        ("method", ""),
        ("tokens/s", "decode tokens over decode seconds, pooled; prefill apart"),
        ("speedup", "tokens/s over ar's on the same prompts [paired bootstrap 95 %]"),
        ("tau", "1 + accepted draft tokens / verifications (bonus included)"),
        ("recovery %", "tau over tau of full, same drafter and tree [95 %]"),
        ("coverage", "verified positions whose target token was in the shortlist"),
        ("shortlist", "tokens scored a draft step, mean"),
        ("exact", "greedy answers against ar's"),
        ("prefill s", "call to first token, mean a prompt"),
    )
    rows = []
    for row in summary["overall"]:
        tone = verdicts.speed_tone(row)
        rows.append(
            (
                Cell(row["method"]),
                Cell(number(row["tokens_per_second"], 1)),
                Cell(with_interval(row["speedup"], row["speedup_ci95"]), tone),
                Cell(number(row["mean_acceptance_length"])),
                Cell(with_interval(row["recovery"], row["recovery_ci95"], 100)),
                Cell(percent(row["coverage"])),
                Cell(number(row["mean_shortlist_size"], 0)),
                Cell(verdicts.exact_words(row), verdicts.exact_tone(row)),
                Cell(number(row["prefill_s_per_prompt"], 3)),
            )
        )
    return Table("All prompts", "", columns, tuple(rows))


def task_table(
    summary: Mapping[str, Any], title: str, definition: str, cell: Callable[[Row], Cell]
) -> Table | None:
    """One row a task, one column a method; None where no cell holds anything."""
    methods = list(dict.fromkeys(row["method"] for row in summary["rows"]))
    suites = len({row["suite"] for row in summary["rows"]})
    by_group: dict[str, dict[str, Row]] = {}
    prompts: dict[str, int] = {}
    for row in summary["rows"]:
        name = label(row, suites)
        by_group.setdefault(name, {})[row["method"]] = row
        prompts[name] = max(prompts.get(name, 0), row["prompts"])
    kept = [
        m for m in methods if any(m in g and cell(g[m]).text != NONE for g in by_group.values())
    ]
    if not kept:
        return None
    rows = tuple(
        (
            Cell(f"{name}, {prompts[name]} prompt{'' if prompts[name] == 1 else 's'}"),
            *(cell(group[m]) if m in group else Cell(NONE) for m in kept),
        )
        for name, group in by_group.items()
    )
    return Table(title, definition, (("task", ""), *((m, "") for m in kept)), rows)


def task_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Speedup, acceptance length, recovery and coverage by task."""
    tables = [
        task_table(
            summary,
            "Speedup by task, numbers",
            "tokens/s over ar's, pooled over the task's prompts [paired bootstrap 95 % interval]; "
            "red: slower than ar",
            lambda r: Cell(
                with_interval(r["speedup"], r["speedup_ci95"]) if r["method"] != "ar" else NONE,
                verdicts.speed_tone(r),
            ),
        ),
        task_table(
            summary,
            "Mean acceptance length by task",
            "tau = 1 + accepted draft tokens / verifications, pooled over steps, bonus included",
            lambda r: Cell(number(r["mean_acceptance_length"]) if r["num_spec_steps"] else NONE),
        ),
        task_table(
            summary,
            "Recovery by task, %",
            "tau over tau of the full vocabulary with the same drafter and tree [95 %]",
            lambda r: Cell(with_interval(r["recovery"], r["recovery_ci95"], 100)),
        ),
        task_table(
            summary,
            "Coverage by task",
            "share of verified positions whose target token was in the shortlist",
            lambda r: Cell(percent(r["coverage"])),
        ),
    ]
    return [table for table in tables if table is not None]


def detail_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Acceptance and coverage by position, milliseconds by phase, coverage by script, pairs."""
    rows = summary["overall"]
    drafted = [row for row in rows if row["num_spec_steps"]]
    tables = [
        _position_table(
            drafted,
            "acceptance_by_position",
            "Acceptance by position, conditional",
            "alpha_i = steps that accepted at least i / steps that accepted at least i - 1",
        ),
        _position_table(
            drafted,
            "unconditional_acceptance_by_position",
            "Acceptance by position, unconditional",
            "steps that accepted at least i / all steps; the sum over i is tau - 1",
        ),
        _position_table(
            drafted,
            "coverage_by_position",
            "Coverage by position",
            "share of steps in which the target's i-th token was in the shortlist it was "
            "drafted from",
        ),
        _phase_table(rows),
        _script_table(drafted),
        _pair_table(summary["pairs"]),
    ]
    return [table for table in tables if table is not None]


def _position_table(rows: Sequence[Row], key: str, title: str, definition: str) -> Table | None:
    depth = max((len(row[key]) for row in rows), default=0)
    if not depth:
        return None
    columns = (("method", ""), *((str(i + 1), "") for i in range(depth)))
    body = tuple(
        (
            Cell(row["method"]),
            *(Cell(percent(row[key][i] if i < len(row[key]) else None)) for i in range(depth)),
        )
        for row in rows
    )
    return Table(title, definition, columns, body)


def _phase_table(rows: Sequence[Row]) -> Table | None:
    timed = [row for row in rows if row["phase_ms"] and sum(row["phase_ms"].values()) > 0]
    if not timed:
        return None
    columns = (
        ("method", ""),
        *((phase, "") for phase in PHASES),
        ("step", "sum"),
        ("a token", "step / tau"),
    )
    body = []
    for row in timed:
        total = sum(row["phase_ms"].values())
        body.append(
            (
                Cell(row["method"]),
                *(Cell(number(row["phase_ms"].get(phase, 0.0))) for phase in PHASES),
                Cell(number(total)),
                Cell(number(total / row["mean_acceptance_length"])),
            )
        )
    return Table(
        "Milliseconds by phase",
        "wall-clock milliseconds, mean a step; a step is one verification (ar: one target pass)",
        columns,
        tuple(body),
    )


def _script_table(rows: Sequence[Row]) -> Table | None:
    scripts = [s for s in SCRIPTS if any(s in row["coverage_by_script"] for row in rows)]
    if not scripts:
        return None
    body = tuple(
        (
            Cell(script),
            *(Cell(_script_cell(row["coverage_by_script"].get(script))) for row in rows),
        )
        for script in scripts
    )
    return Table(
        "Coverage by script",
        "coverage over the positions whose target token begins with a letter of the script "
        "(positions in brackets); code: all tokens of code prompts; common: digits, punctuation, "
        "emoji, fragments",
        (("script", ""), *((row["method"], "") for row in rows)),
        body,
    )


def _script_cell(value: Mapping[str, float] | None) -> str:
    return NONE if value is None else f"{percent(value['coverage'])} ({value['positions']:,})"


def _pair_table(pairs: Sequence[Row]) -> Table | None:
    kept = [p for p in pairs if p["over"] != "ar" and p["speed_ratio"] is not None]
    if not kept:
        return None
    body = []
    for pair in kept:
        interval = pair["speed_ratio_ci95"]
        tone = verdicts.EVEN
        if interval is not None and (interval[0] > 1 or interval[1] < 1):
            tone = verdicts.WIN if interval[0] > 1 else verdicts.LOSS
        body.append(
            (
                Cell(pair["method"]),
                Cell(pair["over"]),
                Cell(with_interval(pair["speed_ratio"], interval), tone),
                Cell(
                    with_interval(
                        pair["acceptance_length_ratio"], pair["acceptance_length_ratio_ci95"]
                    )
                ),
            )
        )
    return Table(
        "Method against method",
        "ratios over all prompts, paired, with 95 % intervals",
        (
            ("method", ""),
            ("over", ""),
            ("tokens/s ratio", "above 1: the first is faster"),
            ("tau ratio", "above 1: the first accepts more"),
        ),
        tuple(body),
    )
