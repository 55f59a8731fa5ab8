"""The live line with tokens per second, on stderr.

Where text and line share a screen, the line gets the bottom row and the text scrolls above it (a
scroll region), so that neither can overwrite the other. Where the text goes elsewhere, the line
rewrites itself in place.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from dynaspec_cli.ui.console import on_terminal, same_terminal
from dynaspec_cli.ui.view import View

INTERVAL_S = 0.1
MIN_ROWS = 5


class StatusLine(View):
    """Draws nothing: for pipes, --quiet and --json. The base of those that draw."""

    def update(self, text: str, always: bool = False) -> None:
        """Show ``text`` (one line). Calls in quick succession are dropped, unless ``always``."""


class _Drawn(StatusLine):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0
        self._shown = False

    def update(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if now - self._last < INTERVAL_S and not always:
            return
        self._last = now
        self._draw(text)
        self._shown = True

    def _draw(self, text: str) -> None:
        raise NotImplementedError

    def _write(self, data: str) -> None:
        self._stream.write(data)
        self._stream.flush()

    def _size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return columns, rows


class InPlaceStatus(_Drawn):
    """Rewrites the current row of stderr."""

    def _draw(self, text: str) -> None:
        from rich.cells import set_cell_size

        width = max(self._size()[0] - 1, 1)
        self._write(f"\r{set_cell_size(text, width)}")

    def close(self) -> None:
        if self._shown:
            self._write("\r\x1b[2K")
            self._shown = False


class BottomRowStatus(_Drawn):
    """Keeps the screen's bottom row; the text scrolls in the rows above."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._screen: tuple[int, int] | None = None

    def _reserve(self, columns: int, rows: int) -> None:
        # Index (ESC D) makes room below without leaving the column; setting the region moves the
        # cursor home, so it is saved around that.
        self._write(f"\x1bD\x1b7\x1b[1;{rows - 1}r\x1b8\x1b[1A")
        self._screen = (columns, rows)

    def _draw(self, text: str) -> None:
        from rich.cells import set_cell_size

        columns, rows = self._size()
        if rows < MIN_ROWS:
            return
        if self._screen != (columns, rows):
            self._reserve(columns, rows)
        line = set_cell_size(text, columns - 1)
        style = ("", "") if os.environ.get("NO_COLOR") else ("\x1b[2m", "\x1b[0m")
        self._write(f"\x1b7\x1b[{rows};1H\x1b[2K{style[0]}{line}{style[1]}\x1b8")

    def close(self) -> None:
        if self._screen is None:
            return
        rows = self._screen[1]
        self._write(f"\x1b7\x1b[{rows};1H\x1b[2K\x1b[r\x1b8")
        self._screen = None


def status_line(enabled: bool, streaming: bool) -> StatusLine:
    """The right kind for where stdout and stderr go; ``streaming``: text is written meanwhile."""
    if not enabled or not on_terminal(sys.stderr):
        return StatusLine()
    if streaming and sys.stdout.isatty() and same_terminal():
        return BottomRowStatus(sys.stderr)
    return InPlaceStatus(sys.stderr)
