"""What a CUDA graph of a draft round holds, on the pretended GPU: as static_step.py for the
target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pretend import CapturedError, PretendCuda
from streams import replaced

from dynaspec_cli.device.round import Round


@contextmanager
def captured_rounds(guard: PretendCuda) -> Iterator[dict[Round, list[Any]]]:
    """Every draft round but the first of its kind, which makes tables, is run as if it were being
    captured, until the end of the block; raises ``CapturedError`` where a graph could not hold it.
    Yields the operations of the kinds as they are met."""
    call = Round.__call__
    warm: set[Round] = set()
    known: dict[Round, list[Any]] = {}

    def run(self: Round, *args: Any) -> Any:
        if self not in warm:
            warm.add(self)
            return call(self, *args)
        guard.steps.clear()
        with guard.capture():
            out = call(self, *args)
        operations = list(guard.steps)
        if known.setdefault(self, operations) != operations:
            raise CapturedError("a draft round: operations depend on data")
        return out

    with replaced({(Round, "__call__"): run}):
        yield known
