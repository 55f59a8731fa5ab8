"""The benchmark on a terminal: a bar while it runs, tables and verdicts when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from dynaspec_cli.bench.report import verdicts
from dynaspec_cli.bench.report.tables import Cell, Table, headline_table, task_tables
from dynaspec_cli.bench.report.words import caution
from dynaspec_cli.ui.console import on_terminal, stderr_console
from dynaspec_cli.ui.view import View

PIPE_WIDTH = 160
"""Columns where stdout is no terminal, so that a table is not wrapped in a file."""

LINE_EVERY_S = 30.0

_STYLES = {verdicts.WIN: "green", verdicts.LOSS: "bold red", verdicts.EVEN: ""}


class BenchBar(View):
    """Progress on stderr: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._live = enabled and on_terminal(sys.stderr)
        self._progress: Any = None
        self._task: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=stderr_console(),
                transient=True,
            )
            self._task = self._progress.add_task("starting", total=None)
            self._progress.start()
        return self

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        """``runner.ProgressCallback``."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, description=what)
        elif self._enabled and time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            sys.stderr.write(f"{done}/{total} prompts; {what}\n")
            sys.stderr.flush()


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
