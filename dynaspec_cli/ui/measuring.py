"""Progress of a benchmark."""

from __future__ import annotations

import sys
from typing import Any, Self

from dynaspec_cli.ui.console import counting_progress, on_terminal
from dynaspec_cli.ui.lines import ProgressLines
from dynaspec_cli.ui.view import View


class BenchBar(View):
    """Progress on stderr: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._live = enabled and on_terminal(sys.stderr)
        self._progress: Any = None
        self._task: Any = None
        self._lines = ProgressLines(enabled and not self._live)

    def __enter__(self) -> Self:
        if self._live:
            self._progress = counting_progress()
            self._task = self._progress.add_task("starting", total=None)
            self._progress.start()
        return self

    def close(self) -> None:
        self._lines.close()
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        """``runner.ProgressCallback``."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, description=what)
        else:
            self._lines.update("measuring", f"{done}/{total} prompts; {what}")
