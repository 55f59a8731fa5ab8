"""Prompts over processes of this machine, each with an engine of its own.

The parent hands out one prompt at a time and alone writes results. A worker that dies is replaced
and its prompt is given out again; what it sent before it died counts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from dynaspec_cli.batch.answer import BatchRequest, answer, failure
from dynaspec_cli.batch.prompts import BatchPrompt
from dynaspec_cli.errors import DynaSpecError

MAX_DEATHS = 3
"""Workers that may die with a prompt, or while they load, one after the other."""
LOOK_S = 0.2
"""Seconds between two looks at whether to stop."""


class Worker:
    """A process and what it is at. ``ready``: its engine is loaded."""

    def __init__(self, request: BatchRequest) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, request), daemon=True)
        # A terminal sends Ctrl-C to all; the parent ends its workers.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        self.prompt: BatchPrompt | None = None
        self.ready = False

    def give(self, prompt: BatchPrompt) -> None:
        self.prompt = prompt
        with contextlib.suppress(OSError):  # it has died, as the next ``take`` shows
            self.pipe.send(prompt)

    def take(self) -> tuple[str, Any]:
        """What it has sent: "ready", a "line", why loading "failed"; or "dead"."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            return "dead", None
        if kind == "line":
            self.prompt = None
        return kind, value

    def end(self) -> str:
        """Stop it; how it died, if it was not this that ended it."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def run(
    count: int,
    prompts: Sequence[BatchPrompt],
    request: BatchRequest,
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """Lines as they come from at most ``count`` workers; ends early where asked to stop. Raises
    DynaSpecError where no engine can be loaded."""
    waiting = deque(prompts)
    deaths: dict[str, int] = {}
    unloaded = 0  # workers that died while they loaded, since one was ready
    workers: list[Worker] = []
    try:
        while not should_stop():
            busy = sum(worker.prompt is not None for worker in workers)
            if not waiting and not busy:
                return
            while len(workers) < min(count, len(waiting) + busy):
                workers.append(Worker(request))
            for worker in workers:
                if worker.ready and worker.prompt is None and waiting:
                    worker.give(waiting.popleft())
            for pipe in wait([worker.pipe for worker in workers], LOOK_S):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                kind, value = worker.take()
                if kind == "ready":
                    worker.ready, unloaded = True, 0
                elif kind == "line":
                    yield value
                elif kind == "failed":
                    raise DynaSpecError(value)
                else:
                    workers.remove(worker)
                    cause, lost = worker.end(), worker.prompt
                    if lost is None:
                        unloaded += not worker.ready
                        _check_loading(unloaded, cause)
                        continue
                    deaths[lost.key] = deaths.get(lost.key, 0) + 1
                    if deaths[lost.key] < MAX_DEATHS:
                        waiting.appendleft(lost)
                    else:
                        yield failure(lost, f"{MAX_DEATHS} workers died with it ({cause})")
    finally:
        for worker in workers:
            worker.end()


def _check_loading(deaths: int, cause: str) -> None:
    if deaths >= MAX_DEATHS:
        raise DynaSpecError(
            f"--workers: {deaths} workers died while they loaded the model ({cause}); memory may "
            "be short, try fewer"
        )


def _work(pipe: Connection, request: BatchRequest) -> None:
    """The worker: loads an engine, then answers until its parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        try:
            engine = request.load()
        except DynaSpecError as error:
            pipe.send(("failed", str(error)))
            return
        pipe.send(("ready", None))
        while True:
            pipe.send(("line", answer(engine, pipe.recv(), request)))
