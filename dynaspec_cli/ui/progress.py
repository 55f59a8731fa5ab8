"""Progress of loading and converting a model, as a bar on stderr that vanishes when done."""

from __future__ import annotations

import sys
from typing import Any

from dynaspec_cli.target.events import LoadProgress
from dynaspec_cli.ui.console import on_terminal, stderr_console
from dynaspec_cli.ui.lines import ProgressLines
from dynaspec_cli.ui.view import View


class LoadBar(View):
    """A callable for ``Engine.load(progress=...)`` and a context manager around it.

    On a terminal it draws a bar; elsewhere a long stage is told by a line now and then
    (``ProgressLines``)."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._live = enabled and on_terminal(sys.stderr)
        self._progress: Any = None
        self._task: Any = None
        self._lines = ProgressLines(enabled and not self._live)

    def __call__(self, event: LoadProgress) -> None:
        if not self._enabled:
            return
        if not self._live:
            share = event.fraction
            self._lines.update(event.stage, "" if share is None else f"{100 * share:.0f} %")
            return
        if self._progress is None:
            self._start()
        total = None if event.fraction is None else 1.0
        self._progress.update(
            self._task, description=event.stage, total=total, completed=event.fraction or 0.0
        )

    def _start(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=stderr_console(),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def close(self) -> None:
        """Remove the bar, or say nothing more."""
        self._lines.close()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
