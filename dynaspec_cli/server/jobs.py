"""The queue, and the one thread that generates.

A job is cancelled by a flag that the engine looks at after every step; one that waits leaves the
queue at once. Its events go to the event loop of the connection that asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import DoneEvent, Event
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.pages import give_back
from dynaspec_cli.server.errors import ApiError
from dynaspec_cli.server.metrics import Metrics


class Job:
    """One request, made in the event loop that reads its events."""

    def __init__(self, prompt: list[int], config: GenerationConfig) -> None:
        self.prompt, self.config = prompt, config
        self.cancelled = threading.Event()
        self.queued_s = 0.0
        self._asked = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | ApiError] = asyncio.Queue()

    def begin(self) -> None:
        self.queued_s = time.monotonic() - self._asked

    def post(self, event: Event | ApiError) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Up to ``DoneEvent``. Raises ApiError where the job failed or the server ends."""
        while True:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            yield event
            if isinstance(event, DoneEvent):
                return


class Jobs:
    """``max_waiting``: jobs that may wait while one runs."""

    def __init__(
        self, engine: Engine, speculative: bool, max_waiting: int, metrics: Metrics
    ) -> None:
        self._conversation = engine.conversation()
        self._speculative = speculative
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="dynaspec-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        with self._changed:
            return int(self._running is not None), len(self._waiting)

    def check_room(self) -> None:
        """Raises ApiError where the queue is full."""
        with self._changed:
            self._check_room()

    def _check_room(self) -> None:
        if self._ended:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if len(self._waiting) + (self._running is not None) > self._max_waiting:
            self._metrics.count("refused")
            raise ApiError(
                429,
                f"{len(self._waiting)} requests wait already; try again later",
                code="queue_full",
            )

    def submit(self, job: Job) -> None:
        """Raises ApiError where the queue is full."""
        with self._changed:
            self._check_room()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop a job within a step; nothing happens to one that has ended."""
        job.cancelled.set()
        with self._changed:
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
        if waited:
            self._metrics.count("cancelled")
            job.post(ApiError(503, "the request was cancelled", code="cancelled"))

    def end(self) -> None:
        """Cancel everything; the thread ends after the step under way."""
        with self._changed:
            self._ended = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify()
        for job in jobs:
            self.cancel(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                job = self._running = self._waiting.popleft()
            job.begin()
            try:
                last = self._run(job)
            except DynaSpecError as error:
                last = self._failed(ApiError(500, str(error), code="generation_failed"))
            except Exception as error:
                # Its text may hold a part of the prompt, so only its kind is told.
                last = self._failed(ApiError(500, f"unexpected {type(error).__name__}"))
            with self._changed:
                self._running = None  # before the client knows, who may ask again at once
            job.post(last)
            give_back()

    def _run(self, job: Job) -> DoneEvent | ApiError:
        """Generate; what to post last."""
        result: Any = None
        for event in self._conversation.generate(
            job.prompt,
            job.config,
            speculative=self._speculative,
            should_stop=job.cancelled.is_set,
        ):
            if isinstance(event, DoneEvent):
                result = event.result
                break
            job.post(event)
        if result.finish_reason == "interrupted":
            self._metrics.add(result, "cancelled", job.queued_s)
            return ApiError(503, "the request was cancelled", code="cancelled")
        self._metrics.add(result, "completed", job.queued_s)
        return DoneEvent(result)

    def _failed(self, error: ApiError) -> ApiError:
        self._metrics.count("failed")
        return error
