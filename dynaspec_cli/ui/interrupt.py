"""Ctrl-C and SIGTERM, which mean the same: stop, and keep what there is."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Ctrl-C as a request to stop after the current step, so that what was generated is kept.

    While active, the first signal sets ``requested``; a second one raises KeyboardInterrupt. A
    signal that the process was told to ignore (nohup, a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[signal.Signals, Any] = {}

    def should_stop(self) -> bool:
        """What ``Engine.generate`` asks after each step."""
        return self.requested

    def __enter__(self) -> Interruption:
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def terminate_as_ctrl_c() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def leave_at_once(code: int) -> None:
    """From now on, while the interpreter ends, a signal ends the process with ``code`` and without
    a word: all results are written, and libraries may take a second to shut down."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(code)

    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


def end(code: int) -> NoReturn:
    """End the process with ``code``. Taking down an interpreter that holds a model takes half a
    second in which nothing happens that anyone waits for: what is registered to run at exit runs,
    the streams are flushed, and the rest is left to the system. Where a thread still works, or a
    stream takes no more, the interpreter ends as it always does."""
    working = [t for t in threading.enumerate() if not t.daemon]
    if len(working) == 1:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)
