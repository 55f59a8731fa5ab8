"""A server of a tiny model in a thread of the test's own process, so that tests can hold it up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.api import Engine

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

DEFAULTS = GenerationConfig(
    max_new_tokens=16,
    sampling=SamplingConfig(temperature=1.0),
    tree=TreeConfig(size=7, depth=3, width=3),
    shortlist=ShortlistConfig("nanospec", 64),
)


@dataclass
class Running:
    """A server under test; ``lines``: its log."""

    engine: Engine
    service: Any
    url: str
    server: Any
    thread: threading.Thread
    lines: list[str] = field(default_factory=list)

    def wait_idle(self) -> None:
        deadline = time.monotonic() + 20
        while self.service.jobs.counts != (0, 0):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def metric(self, name: str, headers: Any = None) -> float:
        text = httpx.get(f"{self.url}/metrics", headers=headers).text
        line = next(line for line in text.splitlines() if line.startswith(name))
        return float(line.split()[-1])


@pytest.fixture(scope="session")
def chat_engine(chat_model_dir: Path, tiny_drafter_dir: Path) -> Engine:
    return Engine.load(
        str(chat_model_dir), dtype="float32", device="cpu", drafter=str(tiny_drafter_dir)
    )


@pytest.fixture
def start(chat_engine: Engine) -> Iterator[Callable[..., Running]]:
    """Starts servers, which end with the test."""
    started: list[Running] = []

    def run(
        engine: Engine = chat_engine, defaults: GenerationConfig = DEFAULTS, **options: Any
    ) -> Running:
        from dynaspec_cli.server import listen
        from dynaspec_cli.server.app import ServerOptions, Service, create_app

        service = Service(engine, ServerOptions("tiny", defaults, **options))
        bound = listen.bind("127.0.0.1", 0)
        lines: list[str] = []
        ready = threading.Event()
        config = listen.uvicorn.Config(
            create_app(service, lines.append),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        server = listen._Server(config, service, ready.set)
        service.jobs.start()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        assert ready.wait(10)
        started.append(Running(engine, service, listen.url(bound), server, thread, lines))
        return started[-1]

    yield run
    for running in started:
        running.server.should_exit = True
        running.thread.join(10)
        assert not running.thread.is_alive()
        running.service.jobs._thread.join(10)
        assert not running.service.jobs.alive


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch, chat_engine: Engine) -> threading.Semaphore:
    """Every verification takes one permit; the test hands them out. Counts them in ``taken``."""
    permits: Any = threading.Semaphore(0)
    permits.taken = 0
    verify = chat_engine.target.verify

    def held(*args: Any) -> Any:
        assert permits.acquire(timeout=20)
        permits.taken += 1
        return verify(*args)

    monkeypatch.setattr(chat_engine.target, "verify", held)
    return permits
