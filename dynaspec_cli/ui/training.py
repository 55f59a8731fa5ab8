"""Progress of a training run: a bar on a terminal, elsewhere a line now and then, and a line with
each held-out score."""

from __future__ import annotations

import sys
import time
from typing import Any

from dynaspec_cli.ui.console import on_terminal, stderr_console
from dynaspec_cli.ui.lines import ProgressLines
from dynaspec_cli.ui.view import View


class TrainingView(View):
    """Draws ``TrainProgress`` objects; ``minutes``: the run's length where the clock ends it."""

    def __init__(self, enabled: bool, minutes: float | None) -> None:
        self._enabled, self._minutes = enabled, minutes
        self._bar: Any = None
        self._task: Any = None
        self._begun = time.monotonic()
        self._live = on_terminal(sys.stderr)
        self._lines = ProgressLines(enabled and not self._live)

    def close(self) -> None:
        self._lines.close()
        if self._bar is not None:
            self._bar.stop()

    def show(self, state: Any) -> None:
        """Draw one step."""
        if not self._enabled:
            return
        if state.losses:
            self._draw(state) if self._live else self._lines.update("training", _state(state))
        if state.score is not None:
            score = state.score
            groups = "  ".join(f"{name} {value:.2f}" for name, value in score.by_group.items())
            line = (
                f"step {state.step}  {state.tokens / 1e6:.2f} M tokens  "
                f"{state.tokens_per_second:.0f} tok/s  "
                f"loss {' '.join(f'{x:.2f}' for x in state.losses)}  held-out top-1 "
                f"{' '.join(f'{x:.0%}' for x in score.top1)}  "
                f"chain {score.chain_length:.2f}  ({groups})"
            )
            if self._bar is not None:
                self._bar.console.print(line, highlight=False)
            else:
                self._lines.said()
                sys.stderr.write(line + "\n")
                sys.stderr.flush()

    def _draw(self, state: Any) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=stderr_console(),
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()
        done = state.step / state.steps
        if self._minutes is not None:
            done = max(done, (time.monotonic() - self._begun) / 60 / self._minutes)
        self._bar.update(self._task, completed=min(done, 1.0), description=_state(state))


def _state(state: Any) -> str:
    return f"step {state.step}  loss {state.losses[0]:.2f}  {state.tokens_per_second:.0f} tok/s"
