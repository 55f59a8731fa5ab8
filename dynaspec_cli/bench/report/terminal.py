"""The report on a terminal: tables and verdicts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from dynaspec_cli.bench.report import verdicts
from dynaspec_cli.bench.report.tables import Cell, Table, headline_table, task_tables
from dynaspec_cli.bench.report.words import caution
from dynaspec_cli.ui.console import on_terminal

PIPE_WIDTH = 160
"""Columns where stdout is no terminal, so that a table is not wrapped in a file."""

_STYLES = {verdicts.WIN: "green", verdicts.LOSS: "bold red", verdicts.EVEN: ""}


def print_summary(summary: Mapping[str, Any]) -> None:
    """Headline table, speedup by task, one verdict a method, and the losses."""
    from rich.console import Console
    from rich.text import Text

    width = None if on_terminal(sys.stdout) else PIPE_WIDTH
    console = Console(highlight=False, width=width)
    console.print(_rich(headline_table(summary)))
    for table in task_tables(summary)[:2]:
        console.print(_rich(table))
    for tone, sentence in verdicts.headline(summary):
        console.print(Text(sentence, style=_STYLES[tone]))
    if warning := caution(summary):
        console.print(Text(warning, style="dim"))
    found = verdicts.losses(summary)
    if found:
        console.print(Text("Losses:", style="bold red"))
        for sentence in found:
            console.print(Text(f"  {sentence}", style="red"))


def _rich(table: Table) -> Any:
    from rich.table import Table as RichTable
    from rich.text import Text

    caption = table.definition or "; ".join(
        f"{name}: {words}" for name, words in table.columns if words
    )
    shown = RichTable(
        title=table.title, title_justify="left", caption=Text(caption), caption_justify="left"
    )
    for index, (name, _) in enumerate(table.columns):
        shown.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(cell.text, style=_style(cell)) for cell in row))
    return shown


def _style(cell: Cell) -> str:
    return _STYLES[cell.tone]
