"""Wall-clock seconds by phase of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dynaspec_cli.engine.events import PHASES


class PhaseClock:
    """``with clock("verify"): ...`` adds to a phase; ``lap`` returns the step's seconds, the rest
    as "other".

    CUDA work is asynchronous: a phase then shows when it was launched, except that the device is
    waited for at the end of each phase if ``synchronize`` is set (which costs overlap, so it is a
    diagnosis, not the default).
    """

    def __init__(self, device: torch.device, synchronize: bool = False) -> None:
        self._device = device if synchronize and device.type == "cuda" else None
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            if self._device is not None:
                torch.cuda.synchronize(self._device)
            self._seconds[phase] += time.perf_counter() - begun

    def lap(self) -> dict[str, float]:
        """Seconds by phase since the last lap; they sum to the wall-clock time between the laps."""
        now = time.perf_counter()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        seconds["other"] += (now - self._start) - sum(seconds.values())
        self._start = now
        return seconds
