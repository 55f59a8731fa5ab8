"""Where the lines of a conversation come from: an editor on a terminal, or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from dynaspec_cli.errors import DynaSpecError

PROMPT = ">>> "


class Lines(Protocol):
    """Iterating yields what was typed. ``default``: what the next line begins with, where lines
    are ``editable``."""

    default: str
    editable: bool

    def __iter__(self) -> Iterator[str]: ...


class PipedLines:
    """A line of standard input each. Raises DynaSpecError for one that is no UTF-8."""

    default = ""
    editable = False

    def __iter__(self) -> Iterator[str]:
        for number, raw in enumerate(sys.stdin.buffer if sys.stdin else (), 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DynaSpecError(
                    f"standard input: expected UTF-8 text, line {number} is none ({error.reason})"
                ) from error
            if text.strip():
                yield text


class EditedLines:
    """prompt_toolkit: history by the arrow keys, Alt-Enter breaks a line, Ctrl-C clears it, Ctrl-D
    ends. ``history`` None: kept in memory only. The prompt goes to where the eyes are, which is
    stderr if the answers go to a file."""

    editable = True

    def __init__(self, history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.output.defaults import create_output

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        past = InMemoryHistory() if history is None else FileHistory(str(history))
        screen = sys.stdout if sys.stdout.isatty() else sys.stderr
        self.default = ""
        self._session: Any = PromptSession(
            PROMPT, history=past, key_bindings=keys, output=create_output(stdout=screen)
        )

    def __iter__(self) -> Iterator[str]:
        while True:
            default, self.default = self.default, ""
            try:
                text = self._session.prompt(default=default)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text.strip():
                yield text


def history_file() -> Path | None:
    """Where typed lines are kept, readable by their user alone; None where that cannot be."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "dynaspec" / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return None
    return path


def open_lines(keep_history: bool) -> Lines:
    """An editor where standard input is a terminal, else a pipe."""
    if sys.stdin is not None and sys.stdin.isatty():
        return EditedLines(history_file() if keep_history else None)
    return PipedLines()
