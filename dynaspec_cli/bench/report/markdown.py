"""``report.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynaspec_cli.bench.report import verdicts
from dynaspec_cli.bench.report.plots import Plot, all_plots
from dynaspec_cli.bench.report.tables import Cell, Table, detail_tables, headline_table, task_tables
from dynaspec_cli.bench.report.words import DEFINITIONS, caution, describe_run


def markdown(summary: Mapping[str, Any], plot_folder: str = "plots") -> str:
    """The report in Markdown; pictures are referred to as files below ``plot_folder``."""
    plots = all_plots(summary)
    parts = ["# dynaspec bench", ""]
    parts += [f"- {_toned(sentence, tone)}" for tone, sentence in verdicts.headline(summary)]
    parts += ["", caution(summary)] if caution(summary) else []
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
