"""Ten minutes of eight clients that come, wait, read and go away: no leak, no wrong text, nothing
stuck. ``DYNASPEC_SOAK_SECONDS`` shortens it, ``DYNASPEC_SOAK_MODEL`` names another model."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynaspec_cli.config import GenerationConfig, SamplingConfig
from dynaspec_cli.engine.api import Engine

from .test_command import listening, start

httpx = pytest.importorskip("httpx")

SECONDS = float(os.environ.get("DYNASPEC_SOAK_SECONDS", "600"))
MODEL = os.environ.get("DYNASPEC_SOAK_MODEL")
CLIENTS = 8
STUCK_S = 240.0
GROWTH = 1.02
"""Of resident memory, from the second quarter of the time to the last."""

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea, there lived",
    "A list of the planets: Mercury, Venus,",
    "Die Hauptstadt von Deutschland ist",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "1, 1, 2, 3, 5, 8, 13,",
    "In this chapter we show that every bounded sequence has a convergent subsequence. " * 5,
)


@dataclass(frozen=True)
class Request:
    """One of the few that are asked again and again, so that their texts can be checked."""

    prompt: str
    seed: int
    temperature: float
    tokens: int

    def body(self, stream: bool) -> dict:
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "temperature": self.temperature,
            "max_tokens": self.tokens,
            "stream": stream,
        }


@dataclass
class Seen:
    """What the clients met."""

    texts: dict[Request, set[str]] = field(default_factory=dict)
    answers: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def text(self, request: Request, text: str) -> None:
        with self.lock:
            self.answers += 1
            self.texts.setdefault(request, set()).add(text)


def requests(draw: random.Random) -> list[Request]:
    found = []
    for seed, text in enumerate(TEXTS * 3):
        temperature = draw.choice((0.0, 0.7, 1.0))
        found.append(Request(text, seed, temperature, draw.choice((2, 8, 16, 40))))
    return found


def client(url: str, number: int, pool: list[Request], until: float, seen: Seen) -> None:
    draw = random.Random(number)
    while time.monotonic() < until:
        request, stream = draw.choice(pool), draw.random() < 0.5
        leave = draw.random() < 0.3
        try:
            if leave:
                go_away(url, request, stream, draw)
                with seen.lock:
                    seen.left += 1
            else:
                seen.text(request, ask(url, request, stream))
        except Exception as error:
            with seen.lock:
                seen.errors.append(f"{type(error).__name__}: {error}")
        time.sleep(draw.random() * 0.2)


def ask(url: str, request: Request, stream: bool) -> str:
    with httpx.Client(timeout=STUCK_S) as web:
        if not stream:
            answer = web.post(f"{url}/v1/completions", json=request.body(False))
            answer.raise_for_status()
            return answer.json()["choices"][0]["text"]
        parts = []
        with web.stream("POST", f"{url}/v1/completions", json=request.body(True)) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    parts.append(json.loads(line[6:])["choices"][0]["text"])
        return "".join(parts)


def go_away(url: str, request: Request, stream: bool, draw: random.Random) -> None:
    """Ask, then leave: while waiting, or within the stream."""
    try:
        with httpx.Client(timeout=draw.uniform(0.01, 3.0)) as web:
            if not stream:
                web.post(f"{url}/v1/completions", json=request.body(False))
                return
            with web.stream("POST", f"{url}/v1/completions", json=request.body(True)) as answer:
                for _ in zip(range(draw.randrange(6)), answer.iter_lines(), strict=False):
                    pass
    except httpx.TimeoutException:
        pass


def resident(pid: int) -> dict[str, int]:
    """Bytes by kind: VmRSS is what the bound is about; RssFile, pages of mapped weight files, comes
    and goes with what else the machine's memory has to hold, as VmSwap does."""
    kinds = ("VmRSS", "RssAnon", "RssFile", "VmSwap")
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split(":") for line in lines if line.split(":")[0] in kinds)
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}


def quarter(memory: list[dict[str, int]], which: int, kind: str) -> float:
    """The mean of a quarter of the time, 0 to 3."""
    size = len(memory) // 4
    return sum(m[kind] for m in memory[which * size : (which + 1) * size]) / size


@pytest.mark.slow
@pytest.mark.model
def test_soak():
    model = () if MODEL is None else ("--model", MODEL)
    process = start("--port", 0, "--max-queue", 16, *model)
    url = listening(process)
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    try:
        seen, memory = Seen(), []  # a sample of memory a second
        pool = requests(random.Random(0))
        until = time.monotonic() + SECONDS
        threads = [
            threading.Thread(target=client, args=(url, i, pool, until, seen))
            for i in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            memory.append(resident(process.pid))
            time.sleep(1)
        for thread in threads:
            thread.join(STUCK_S + 30)
            assert not thread.is_alive()
        deadline = time.monotonic() + 30
        while httpx.get(f"{url}/health").json() != {"status": "ok", "running": 0, "waiting": 0}:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        metrics = httpx.get(f"{url}/metrics").text
    finally:
        process.terminate()
        process.wait(30)
        drain.join(30)
        process.stdout.close()
        process.stderr.close()
    print(
        f"\n{seen.answers} answers, {seen.left} left early, {len(seen.texts)} of {len(pool)} "
        "requests; MiB by quarters of the time:"
    )
    for kind in memory[0]:
        print(kind, *(f"{quarter(memory, i, kind) / 2**20:.1f}" for i in range(4)))
    print("\n".join(line for line in metrics.splitlines() if not line.startswith("#")))
    assert seen.errors == []
    assert seen.answers > 0 < seen.left
    engine = Engine.load(model=MODEL)
    for request, texts in seen.texts.items():
        sampling = SamplingConfig(temperature=request.temperature, seed=request.seed)
        config = GenerationConfig(request.tokens, sampling=sampling)
        assert texts == {engine.complete(request.prompt, config).text}, request
    # Last, so that a machine short of memory still shows whether the texts are right.
    assert quarter(memory, 3, "VmRSS") <= GROWTH * quarter(memory, 1, "VmRSS")
