"""Shows a running generation: text as it comes, a live line, notices, and the closing panel."""

from __future__ import annotations

import sys
import time

from dynaspec_cli.engine.events import (
    DoneEvent,
    Event,
    GenerationResult,
    NoticeEvent,
    StepStats,
    TokensEvent,
)
from dynaspec_cli.engine.stats import mean_acceptance_length, tokens_per_second
from dynaspec_cli.ui.console import stderr_console, visible
from dynaspec_cli.ui.status import status_line
from dynaspec_cli.ui.view import View


class GenerationView(View):
    """``stream``: write text to stdout as it comes (else all of it at the end, unless
    ``text`` is False, as for --json). ``quiet``: nothing on stderr."""

    def __init__(self, *, stream: bool, text: bool, quiet: bool) -> None:
        self._stream = stream and text
        self._text = text
        self._quiet = quiet
        self._terminal = sys.stdout.isatty()
        self._at_line_start = True
        self._tokens = 0
        self._steps: list[StepStats] = []
        self._begun = 0.0
        self._status = status_line(not quiet, self._stream)
        self._notices: list[str] = []

    def __exit__(self, *failure: object) -> None:
        self.close()
        if failure[0] is not None and not self._at_line_start:
            self._write("\n")  # an error message begins on a line of its own

    def close(self) -> None:
        self._status.close()

    def show(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            self._notices.append(event.message)
        elif isinstance(event, TokensEvent):
            self._show_tokens(event)
        elif isinstance(event, DoneEvent):
            self._finish_text(event.result)

    def note(self, message: str) -> None:
        """Replace the live line by ``message``."""
        self._status.update(message, always=True)

    def _show_tokens(self, event: TokensEvent) -> None:
        now = time.monotonic()
        if self._tokens == 0:
            self._begun = now
        self._tokens += len(event.token_ids)
        if event.step is not None:
            self._steps.append(event.step)
        if self._stream and event.text:
            self._write(event.text)
        speed = tokens_per_second(self._tokens - 1, now - self._begun)
        line = f"{speed:.1f} tokens/s · {self._tokens} tokens"
        if any(step.drafted for step in self._steps[-1:]):
            line += f" · {mean_acceptance_length(self._steps):.2f} tokens/verification"
        self._status.update(line)

    def _finish_text(self, result: GenerationResult) -> None:
        self._status.close()
        if self._text and not self._stream:
            self._write(result.text)
        if self._text:
            self._write("\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(visible(text) if self._terminal else text)
        sys.stdout.flush()
        self._at_line_start = text.endswith("\n")

    def conclude(self, result: GenerationResult) -> None:
        """Notices and the closing panel, on stderr."""
        self._status.close()
        if self._quiet:
            return
        console = stderr_console()
        for message in self._notices:
            console.print(f"Note: {message}", markup=False)
        if self._text:
            from dynaspec_cli.ui.panel import result_panel

            console.print(result_panel(result, plain=not console.is_terminal))
