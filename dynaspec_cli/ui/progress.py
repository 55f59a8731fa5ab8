"""Progress of loading and converting a model, as a bar on stderr that vanishes when done."""

from __future__ import annotations

import sys
import time
from typing import Any

from dynaspec_cli.target.events import LoadProgress
from dynaspec_cli.ui.console import on_terminal, stderr_console
from dynaspec_cli.ui.view import View

PATIENCE_S = 3.0


class LoadBar(View):
    """A callable for ``Engine.load(progress=...)`` and a context manager around it.

    On a terminal it draws a bar; elsewhere a stage that takes longer than ``PATIENCE_S`` is
    announced by one line."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._live = enabled and on_terminal(sys.stderr)
        self._progress: Any = None
        self._task: Any = None
        self._stage = ""
        self._stage_begun = 0.0
        self._announced = False

    def __call__(self, event: LoadProgress) -> None:
        if not self._enabled:
            return
        if not self._live:
            self._announce(event.stage)
            return
        if self._progress is None:
            self._start()
        total = None if event.fraction is None else 1.0
        self._progress.update(
            self._task, description=event.stage, total=total, completed=event.fraction or 0.0
        )

    def _announce(self, stage: str) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_begun, self._announced = stage, now, False
        elif not self._announced and now - self._stage_begun > PATIENCE_S:
            self._announced = True
            sys.stderr.write(f"{stage}...\n")
            sys.stderr.flush()

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
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
