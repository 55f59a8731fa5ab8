"""Progress where there is no terminal: a line on stderr now and then."""

from __future__ import annotations

import sys
import threading
import time
from typing import Self

PATIENCE_S = 3.0
"""Work that is done sooner says nothing."""

EVERY_S = 30.0


class ProgressLines:
    """Says what is being done when it has gone on for ``PATIENCE_S``, and again every ``EVERY_S``,
    also while the work reports nothing: a thread watches the clock."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._text = ""
        self._detail = ""
        self._begun = 0.0
        self._due = 0.0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def update(self, text: str, detail: str = "") -> None:
        """``text`` names the work; with another one the patience begins anew. ``detail``: how far
        it is, which may change with every call."""
        if not self._enabled:
            return
        now = time.monotonic()
        with self._lock:
            if text != self._text:
                self._text, self._begun, self._due = text, now, now + PATIENCE_S
            self._detail = detail
        if self._watch is None:
            self._watch = threading.Thread(target=self._run, daemon=True)
            self._watch.start()

    def said(self) -> None:
        """Something was printed about the work: the next line has time."""
        with self._lock:
            self._due = time.monotonic() + EVERY_S

    def close(self) -> None:
        """Say nothing more; may be called twice."""
        self._end.set()
        if self._watch is not None:
            self._watch.join()
            self._watch = None
        self._enabled = False

    def _run(self) -> None:
        while not self._end.wait(min(PATIENCE_S, EVERY_S) / 10):
            with self._lock:
                now = time.monotonic()
                if not self._text or now < self._due:
                    continue
                self._due = now + EVERY_S
                seconds = int(now - self._begun)
                detail = f", {self._detail}" if self._detail else ""
                line = f"{self._text}{detail} ({seconds // 60}:{seconds % 60:02d})\n"
            sys.stderr.write(line)
            sys.stderr.flush()
