"""Runners that outlive requests: graphs hold addresses, so a request borrows caches that are there.

A drafter's state borrows a runner for its life: its caches become the runner's. Who made the state
anew gets a runner that a dead state left, where one is large enough, with all graphs that were
captured over it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from dynaspec_cli.device.graphs import Runner
from dynaspec_cli.drafters.pairs import PairCache


class Pool:
    """``make``: a runner over a state's own caches."""

    def __init__(self, make: Callable[[PairCache], Runner]) -> None:
        self._make = make
        self._free: list[Runner] = []
        self._lent: dict[int, Runner] = {}

    def runner(self, state: PairCache) -> tuple[Runner, bool]:
        """(that of ``state``, whether it was lent just now: its context is empty)."""
        lent = self._lent.get(id(state))
        if lent is not None and lent.memory.k[0] is state.k[0]:
            return lent, False
        if lent is None:
            weakref.finalize(state, self._back, id(state))
        else:  # its caches had to grow
            self._free.append(self._lent.pop(id(state)))
        rows = state.k[0].shape[0]
        fits = [runner for runner in self._free if runner.memory.k[0].shape[0] >= rows]
        if fits:
            found = min(fits, key=lambda runner: runner.memory.k[0].shape[0])
            self._free.remove(found)
            _move(state, found)
        else:
            self._free.clear()  # smaller ones: their memory is wanted
            found = self._make(state)
        found.forget()
        self._lent[id(state)] = found
        return found, True

    def _back(self, key: int) -> None:
        if key in self._lent:
            self._free.append(self._lent.pop(key))


def _move(state: PairCache, runner: Runner) -> None:
    """The state's committed rows into the runner's caches, zeros behind them."""
    memory, length = runner.memory, state.length
    for there, here in zip((*memory.k, *memory.v), (*state.k, *state.v), strict=True):
        there[:length].copy_(here[:length])
        there[length:].zero_()
    state.k, state.v = memory.k, memory.v
