"""Progress of many prompts, on stderr: a bar with an estimate, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

import click

from dynaspec_cli.ui.console import counting_progress, on_terminal
from dynaspec_cli.ui.view import View

LINE_EVERY_S = 30.0


class BatchBar(View):
    """``total`` prompts, of which ``done`` were answered by an earlier run."""

    def __init__(self, enabled: bool, total: int, done: int) -> None:
        self._enabled = enabled
        self._live = enabled and on_terminal(sys.stderr)
        self._total, self._done, self._here = total, done, 0
        self._failed = self._tokens = 0
        self._begun = self._last = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._live:
            self._progress = counting_progress(elapsed_when_finished=True)
            self._task = self._progress.add_task("", total=self._total, completed=self._done)
            self._progress.start()
        return self

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def show(self, line: Mapping[str, Any]) -> None:
        """One more prompt has its line."""
        self._done += 1
        self._here += 1
        self._failed += "error" in line
        self._tokens += int(line.get("new_tokens", 0))
        now = time.monotonic()
        seconds = max(now - self._begun, 1e-9)
        words = f"{self._tokens / seconds:.1f} tokens/s"
        if self._failed:
            words += f" · {self._failed} failed"
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, description=words)
        elif self._enabled and now - self._last >= LINE_EVERY_S:
            self._last = now
            left = (self._total - self._done) * seconds / self._here
            click.echo(f"{self._done} of {self._total} · {words} · {left:.0f} s left", err=True)
