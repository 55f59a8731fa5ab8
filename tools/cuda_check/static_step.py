"""What a CUDA graph of the static target holds, on the pretended GPU: no wait, named or not, no
tensor of the host, and the same operations on the same shapes whatever the tree and the length."""

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
        guard.steps.clear()
        with guard.capture():
            run(model, arena, form)
        operations = list(guard.steps)
        before = known.setdefault((form, arena.capacity), operations)
        if before != operations:
            pairs = zip(before, operations, strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), "one has more")
            raise CapturedError(f"{form}: operations depend on data: {first}")
        met.add(form)

    with replaced({(graphs, "step"): step}):
        yield met


@contextmanager
def captured_rounds(guard: PretendCuda) -> Iterator[None]:
    """Draft rounds on the device are run as if they were being captured, as the passes are."""
    run = Round.__call__

    def captured(*args: Any, **kwargs: Any) -> Any:
        with guard.capture():
            return run(*args, **kwargs)

    with replaced({(Round, "__call__"): captured}):
        yield
