"""A fake engine for what the command line itself does, and runners for the real program."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import dynaspec_cli
from dynaspec_cli.engine.events import (
    Comparison,
    DoneEvent,
    GenerationResult,
    NoticeEvent,
    StepStats,
    TokensEvent,
)
from dynaspec_cli.engine.stats import summarize
from dynaspec_cli.main import cli

ROOT = Path(__file__).parents[2]
PACKAGE = str(Path(dynaspec_cli.__file__).parents[1])
"""Where the package under test lies: a checkout beside it may hold another."""


@dataclass
class FakeTarget:
    name: str = "fake"


class FakeTokenizer:
    arguments: Mapping[str, Any] = {}

    def chat(self, messages: Sequence[dict[str, str]], **arguments: Any) -> list[int]:
        self.arguments = arguments
        return [len(message["content"]) for message in messages]


@dataclass
class FakeEngine:
    """Emits ``words``, records what it was asked, raises ``error`` after ``fail_after`` words."""

    words: tuple[str, ...] = (" Paris", ",", " the", " city")
    drafter: Any = "a drafter"
    comparison: Comparison | None = None
    error: BaseException | None = None
    load_error: BaseException | None = None
    fail_after: int = 0
    on_word: Callable[[int], None] | None = None
    target: FakeTarget = field(default_factory=FakeTarget)
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    loaded: dict[str, Any] = field(default_factory=dict)
    prompt: Any = None
    config: Any = None

    def load(self, **options: Any) -> FakeEngine:
        self.loaded = options
        if self.load_error is not None:
            raise self.load_error
        return self

    def encode(self, prompt: str) -> list[int]:
        self.text = prompt
        return [1, 2, 3]

    def generate(
        self, prompt: Any, config: Any, *, speculative: bool, should_stop: Callable[[], bool]
    ) -> Iterator[Any]:
        self.prompt, self.config, self.speculative = prompt, config, speculative
        yield NoticeEvent("a notice")
        steps, shown, reason = [], "", "length"
        for i, word in enumerate(self.words):
            if self.error is not None and i == self.fail_after:
                raise self.error
            step = None if i == 0 else StepStats(4, 1, 2, (100, 50), None, {"verify": 0.001})
            steps += [step] if step else []
            shown += word
            yield TokensEvent((i,), word, step)
            if self.on_word is not None:
                self.on_word(i)
            if should_stop():
                reason = "interrupted"
                break
        yield DoneEvent(self.result(shown, steps, reason))

    def result(self, text: str, steps: list[StepStats], reason: Any) -> GenerationResult:
        return summarize(
            text=text,
            token_ids=range(len(steps) + 1),
            prompt_tokens=3,
            finish_reason=reason,
            steps=steps,
            speculative=True,
            time_to_first_token_s=0.1,
            decode_s=0.5,
            load_s=0.2,
            settings={"shortlist": "dynaspec", "tree": "eagle2", "kernels": "cpu-avx2"},
        )

    def compare(self, prompt: Any, result: GenerationResult, config: Any) -> GenerationResult:
        return replace(result, comparison=self.comparison or Comparison(1.5, True, None, result))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    module = types.ModuleType("dynaspec_cli.engine.api")
    module.Engine = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dynaspec_cli.engine.api", module)
    for name in list(os.environ):
        if name.startswith("DYNASPEC_"):
            monkeypatch.delenv(name)
    return fake


@pytest.fixture
def run(engine: FakeEngine) -> Callable[..., Any]:
    """``run("generate", ...)`` in this process, with the fake engine."""

    def invoke(*args: str, stdin: str | bytes | None = None, **env: str) -> Any:
        return CliRunner().invoke(cli, [str(a) for a in args], input=stdin, env=env)

    return invoke
