"""Shows the answers of a conversation: text as it comes on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from dynaspec_cli.engine.events import (
    DoneEvent,
    Event,
    GenerationResult,
    NoticeEvent,
    TokensEvent,
)
from dynaspec_cli.engine.stats import mean_acceptance_length
from dynaspec_cli.ui.console import on_terminal, stderr_console, visible
from dynaspec_cli.ui.view import View


class ChatView(View):
    """``text`` False: nothing on stdout, as for --json. ``markdown``: answers drawn as Markdown,
    where stdout is a terminal."""

    def __init__(self, *, text: bool, markdown: bool, quiet: bool) -> None:
        self._text = text
        self._quiet = quiet
        self._terminal = sys.stdout.isatty()
        self._markdown = markdown and text and on_terminal(sys.stdout)
        self._told: set[str] = set()
        self._answer = ""
        self._live: Any = None

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, event: Event) -> None:
        if isinstance(event, NoticeEvent) and event.message not in self._told:
            self._told.add(event.message)
            self.note(f"Note: {event.message}")
        elif isinstance(event, TokensEvent):
            self._show_text(event.text)
        elif isinstance(event, DoneEvent):
            self._end(event.result)

    def note(self, message: str) -> None:
        """A line on stderr."""
        if not self._quiet:
            click.echo(message, err=True)

    def error(self, message: str) -> None:
        """What went wrong with one line; the conversation goes on."""
        self.close()
        click.echo(f"Error: {' '.join(message.split())}", err=True)

    def statistics(self, results: Sequence[GenerationResult]) -> None:
        """Of the last answer and of all."""
        from dynaspec_cli.ui.panel import result_panel

        if not results:
            self.note("No answer yet.")
            return
        console = stderr_console()
        console.print(result_panel(results[-1], plain=not console.is_terminal))
        steps = [step for result in results for step in result.steps]
        prompt = sum(result.prompt_tokens for result in results)
        cached = sum(result.cached_prompt_tokens for result in results)
        new = sum(result.new_tokens for result in results)
        console.print(
            f"{len(results)} answers: {new} tokens, {mean_acceptance_length(steps):.2f} a "
            f"verification; of {prompt} prompt tokens {cached} had been read before",
            markup=False,
        )

    def _show_text(self, text: str) -> None:
        self._answer += text
        if not self._text or not text:
            return
        if self._markdown:
            from rich.console import Console
            from rich.live import Live
            from rich.markdown import Markdown

            if self._live is None:
                self._live = Live(console=Console(), vertical_overflow="visible")
                self._live.start()
            self._live.update(Markdown(visible(self._answer)))
            return
        self._write(text)

    def _end(self, result: GenerationResult) -> None:
        self.close()
        if self._text and not self._markdown:
            self._write("\n")
        self._answer = ""
        if result.finish_reason == "length":
            self.note(f"(cut at {result.new_tokens} tokens; --max-new-tokens allows more)")

    def _write(self, text: str) -> None:
        sys.stdout.write(visible(text) if self._terminal else text)
        sys.stdout.flush()
