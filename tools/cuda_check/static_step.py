"""What CUDA graphs hold, of a static target's passes and of draft rounds, on the pretended GPU: no
wait, named or not, no tensor of the host, and the same operations on the same shapes whatever the
data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pretend import CapturedError, PretendCuda
from streams import replaced

from dynaspec_cli.device.round import Round
from dynaspec_cli.target.static import graphs
from dynaspec_cli.target.static.step import Form


@contextmanager
def captured_steps(guard: PretendCuda) -> Iterator[set[Form]]:
    """Every pass of a static target is run as if it were being captured, until the end of the
    block; raises ``CapturedError`` where a graph could not hold it. Yields the forms as they are
    met."""
    run = graphs.step
    met: set[Form] = set()
    known: dict[tuple[Form, int], list[Any]] = {}  # an arena of another size has graphs of its own

    def step(model: Any, arena: Any, form: Form) -> None:
        with _same_as(known, (form, arena.capacity), guard):
            run(model, arena, form)
        met.add(form)

    with replaced({(graphs, "step"): step}):
        yield met


@contextmanager
def captured_rounds(guard: PretendCuda) -> Iterator[None]:
    """Draft rounds on the device are run as if they were being captured, as the passes are; each
    once without that before, when it makes its tables."""
    run = Round.__call__
    known: dict[Any, list[Any]] = {}

    def captured(self: Round, inputs: Any, memory: Any, context: Any) -> Any:
        key = (self, memory.k[0].shape[0])
        if key not in known:
            before = guard.counts.copy()
            run(self, inputs, memory, context)
            guard.counts = before
        with _same_as(known, key, guard):
            return run(self, inputs, memory, context)

    with replaced({(Round, "__call__"): captured}):
        yield


@contextmanager
def _same_as(known: dict[Any, list[Any]], key: Any, guard: PretendCuda) -> Iterator[None]:
    """A block as if it were being captured, with the operations that it had before."""
    guard.steps.clear()
    with guard.capture():
        yield
    operations = list(guard.steps)
    before = known.setdefault(key, operations)
    if before != operations:
        pairs = zip(before, operations, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), "one has more")
        raise CapturedError(f"{key}: operations depend on data: {first}")
