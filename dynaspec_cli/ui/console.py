"""Where things are printed: results on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


UNICODE = ("utf-8", "utf8", "utf-16", "utf-32")


def stderr_console() -> Console:
    """A console on stderr; plain where that is no terminal, uncoloured under NO_COLOR."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def show_every_character() -> None:
    """A terminal or pipe whose encoding lacks a character gets its escape (\\u4e16), not an error
    that loses the text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _holds_all(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-") in UNICODE


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else, on stdout; in JSON's own escapes where the encoding lacks
    characters. Infinities and NaN, which JSON lacks, raise."""
    escaped = not _holds_all(sys.stdout)
    sys.stdout.write(json.dumps(data, ensure_ascii=escaped, allow_nan=False) + "\n")
    sys.stdout.flush()


def on_terminal(stream: Any) -> bool:
    """Is ``stream`` a terminal that understands cursor movements?"""
    return bool(stream.isatty()) and os.environ.get("TERM", "") not in ("", "dumb")


def same_terminal() -> bool:
    """Do stdout and stderr share one screen?"""
    try:
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def visible(text: str) -> str:
    """``text`` without control characters that a terminal would obey (a model may write any)."""
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c <= "\x9f"))


def counting_progress(elapsed_when_finished: bool = False) -> Any:
    """A bar on stderr that counts things done, with the time they took and what is left. At the end
    the latter is the time in all, where that is asked for."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=elapsed_when_finished),
        TextColumn("{task.description}"),
        console=stderr_console(),
        transient=True,
    )
