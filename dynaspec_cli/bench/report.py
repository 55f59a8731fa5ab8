"""``report.md`` and the order of what a report says; report_html.py says the same in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynaspec_cli.bench import svg, verdicts
from dynaspec_cli.bench.plots import Plot, all_plots
from dynaspec_cli.bench.store import write_atomic
from dynaspec_cli.bench.tables import Cell, Table, detail_tables, headline_table, task_tables

DEFINITIONS = (
    (
        "tokens/s",
        "decode tokens over decode seconds, pooled over prompts. The first token of an answer "
        "comes from the prefill and is not counted; ids are counted by one function for every "
        "method.",
    ),
    (
        "speedup",
        "tokens/s of a method over tokens/s of ar, both pooled over the same prompts of the same "
        "process. Intervals: 10,000 paired bootstrap draws of prompts, 2.5 and 97.5 percentiles.",
    ),
    (
        "tau, mean acceptance length",
        "1 + accepted draft tokens / verifications, pooled over steps; the bonus token is counted.",
    ),
    (
        "acceptance by position",
        "conditional: steps that accepted at least i over steps that accepted at least i - 1; "
        "unconditional: over all steps.",
    ),
    ("recovery", "tau with a shortlist over tau with the full vocabulary, same drafter and tree."),
    (
        "coverage",
        "share of verified positions whose target token was in the shortlist from which that "
        "position was drafted. It tells a token that the shortlist lacked from one that the "
        "drafter missed.",
    ),
    ("shortlist", "tokens scored a draft step, mean over all calls of the shortlisted head."),
    (
        "speedup as Spec-Bench defines it",
        "new tokens over seconds with prefill, a question at a time, averaged over questions, "
        "over the same of ar; in summary.json as speedup_spec_bench.",
    ),
    (
        "identical, tie, mismatch",
        "greedy answers against ar's. At the first difference one plain target pass gives the "
        "logits: a tie if both ids lie within the stated bound of the largest, otherwise a "
        "mismatch (a bug).",
    ),
)


def describe_run(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, as (name, value); absent settings are left out."""
    s = summary["settings"]
    rows = [
        ("model", s.get("model")),
        ("dtype, device, threads", _joined(s.get("dtype"), s.get("device"), s.get("threads"))),
        ("drafter", _drafter(s.get("drafter"), s.get("drafter_trained_tokens"))),
        ("assistant", s.get("assistant")),
        ("processor", s.get("cpu")),
        ("suites", ", ".join(f"{x['name']} ({x['prompts']} prompts)" for x in s.get("suites", []))),
        ("new tokens a turn", _per_suite(s.get("max_new_tokens"))),
        ("sampling", _sampling(s)),
        ("prompt format", s.get("prompt_format")),
        ("chat template, SHA-256", s.get("chat_template_sha256")),
        ("system prompt, SHA-256", s.get("system_prompt_sha256")),
        ("tokens kept of a turn's text", s.get("max_prompt_tokens")),
        ("repeats, warm-up runs, seed", _joined(s.get("repeats"), s.get("warmup"), s.get("seed"))),
        ("tree depth, width, default size", _joined(*(s.get(f"tree_{k}") for k in _TREE_KEYS))),
        ("tree threshold", s.get("tree_threshold")),
        ("exactness", "checked (--check-exact)" if s.get("check_exact") else None),
        ("tie bound", s.get("tie_bound")),
        ("kernels", s.get("kernels")),
        ("preset", s.get("preset")),
        ("state", s.get("state") if s.get("state") != "complete" else None),
        ("versions", ", ".join(f"{k} {v}" for k, v in s.get("versions", {}).items())),
        ("started, seconds", _joined(s.get("started"), s.get("wall_s"))),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


_TREE_KEYS = ("depth", "width", "size")


def _joined(*values: Any) -> str | None:
    return None if all(v is None for v in values) else ", ".join(str(v) for v in values)


def _drafter(option: str | None, tokens: int | None) -> str | None:
    trained = None if tokens is None else f"trained on {tokens:,} tokens"
    return ", ".join(part for part in (option, trained) if part)


def _per_suite(value: Mapping[str, int] | None) -> str | None:
    if not value:
        return None
    if len(set(value.values())) == 1:
        return str(next(iter(value.values())))
    return ", ".join(f"{name}: {count}" for name, count in value.items())


def _sampling(settings: Mapping[str, Any]) -> str | None:
    if "temperature" not in settings:
        return None
    if settings["temperature"] == 0:
        return "greedy"
    keys = ("temperature", "top_k", "top_p", "min_p")
    return ", ".join(f"{key} {settings[key]}" for key in keys)


def markdown(summary: Mapping[str, Any], plot_folder: str = "plots") -> str:
    """The report in Markdown; pictures are referred to as files below ``plot_folder``."""
    plots = all_plots(summary)
    parts = ["# dynaspec bench", ""]
    parts += [f"- {_toned(sentence, tone)}" for tone, sentence in verdicts.headline(summary)]
    parts += ["", "## What was measured", "", "| | |", "|---|---|"]
    parts += [f"| {_pipe(name)} | {_pipe(value)} |" for name, value in describe_run(summary)]
    parts += ["", *_table(headline_table(summary))]
    for plot in plots[:1]:
        parts += ["", *_figure(plot, plot_folder)]
    for table in task_tables(summary):
        parts += ["", *_table(table)]
    for plot in plots[1:]:
        parts += ["", *_figure(plot, plot_folder)]
    for table in detail_tables(summary):
        parts += ["", *_table(table)]
    parts += ["", "## Losses", ""]
    parts += [f"- **{sentence}**" for sentence in verdicts.losses(summary)] or ["None."]
    parts += ["", "## Definitions", ""]
    parts += [f"- **{name}**: {definition}" for name, definition in DEFINITIONS]
    return "\n".join(parts) + "\n"


def _toned(sentence: str, tone: str) -> str:
    # Markdown has no colour of its own; a loss is bold and its words say it.
    return f"**{sentence}**" if tone == verdicts.LOSS else sentence


def _pipe(text: str) -> str:
    return text.replace("|", "\\|")


def _cell(cell: Cell) -> str:
    return f"**{_pipe(cell.text)}**" if cell.tone == verdicts.LOSS else _pipe(cell.text)


def _table(table: Table) -> list[str]:
    lines = [f"## {table.title}", ""]
    if table.definition:
        lines += [f"{table.definition}.", ""]
    lines.append("| " + " | ".join(_pipe(name) or " " for name, _ in table.columns) + " |")
    lines.append("|---|" + "---:|" * (len(table.columns) - 1))
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows]
    notes = [f"{name}: {text}" for name, text in table.columns if text]
    return [*lines, "", "; ".join(notes) + "."] if notes else lines


def _figure(plot: Plot, folder: str) -> list[str]:
    return [
        f"## {plot.title}",
        "",
        f"![{plot.title}]({folder}/{plot.name}.svg)",
        "",
        plot.definition,
    ]


def write_reports(folder: Path, summary: Mapping[str, Any]) -> Sequence[Path]:
    """Write report.md, report.html and plots/*.svg below ``folder``; returns the paths."""
    from dynaspec_cli.bench.report_html import page

    pictures = folder / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.md", folder / "report.html"]
    write_atomic(written[0], markdown(summary))
    write_atomic(written[1], page(summary))
    for plot in all_plots(summary):
        path = pictures / f"{plot.name}.svg"
        write_atomic(path, svg.standalone(plot.svg))
        written.append(path)
    return written
