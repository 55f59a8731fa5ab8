"""Where things are printed: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def stderr_console() -> Console:
    """A console on stderr; plain where that is no terminal, uncoloured under NO_COLOR."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else, on stdout. Infinities and NaN, which JSON lacks, raise."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
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
