"""A language model by hashing, and arms that tell or bend the truth about it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dynaspec_cli.bench.execute import Lab
from dynaspec_cli.bench.method import TurnTrace
from dynaspec_cli.engine.events import StepStats

VOCAB = 64
EOS = 0
FULL, DYNA = "full+eagle2@4", "dynaspec@8+eagle2@4"
FACTS = {"model": "fake", "dtype": "float32", "device": "cpu", "threads": 1}


def next_token(context: Sequence[int]) -> int:
    """The fake target's greedy choice, never end-of-text."""
    digest = hashlib.sha256(",".join(map(str, context)).encode()).digest()
    return 1 + digest[0] % (VOCAB - 1)


def greedy(context: Sequence[int], count: int) -> tuple[int, ...]:
    ids = list(context)
    for _ in range(count):
        ids.append(next_token(ids))
    return tuple(ids[len(context) :])


class FakeCodec:
    """One id a character; 1 is the begin-of-text token."""

    has_chat_template = False

    def encode(self, text: str, start: bool) -> list[int]:
        return [1] * start + [ord(c) for c in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in token_ids if i > 1)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        raise AssertionError("no template")


class ChatCodec(FakeCodec):
    has_chat_template = True
    chat_template = "<role>content"

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        return self.encode(text + "<assistant>", start=True)


class FakeReference:
    """Logits 10 for the greedy choice, 10 - ``gap`` for the id after it, 0 elsewhere."""

    eos_ids = frozenset({EOS})

    def __init__(self, gap: float = 5.0, dtype: str = "float32", bit_exact: bool = False):
        self.gap = gap
        self.bit_exact = bit_exact
        self.dtype = dtype
        self.asked: list[tuple[int, ...]] = []

    def gaps(self, context: Sequence[int], candidates: Sequence[int]) -> tuple[float, list[float]]:
        self.asked.append(tuple(context))
        best = next_token(context)
        logits = {best: 10.0, best + 1: 10.0 - self.gap}
        return self.gap, [10.0 - logits.get(c, 0.0) for c in candidates]


class FakeAr:
    """Autoregressive decoding at 10 tokens per second, half a second of prefill."""

    name = "ar"

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], int, int]] = []
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def run(self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int) -> TurnTrace:
        self.calls.append((tuple(prompt_ids), max_new_tokens, seed))
        ids = greedy(prompt_ids, max_new_tokens)
        steps = tuple(StepStats(0, 0, 0, seconds={"verify": 0.1}) for _ in ids[1:])
        return TurnTrace(len(prompt_ids), ids, 0.5, 0.1 * (len(ids) - 1), "length", steps)


class FakeSpeculative(FakeAr):
    """The target's tokens, one draft token accepted in every step, 20 tokens per second."""

    def __init__(self, name: str = "full+eagle2@4", covered: bool = True):
        super().__init__()
        self.name = name
        self.covered = covered

    def tokens(self, prompt_ids: Sequence[int], count: int) -> tuple[int, ...]:
        return greedy(prompt_ids, count)

    def run(self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int) -> TurnTrace:
        self.calls.append((tuple(prompt_ids), max_new_tokens, seed))
        ids = self.tokens(prompt_ids, max_new_tokens)
        count = -(-(len(ids) - 1) // 2)
        step = StepStats(
            4, 1, 2, (VOCAB, VOCAB), (True, self.covered), {"verify": 0.06, "head": 0.04}
        )
        return TurnTrace(len(prompt_ids), ids, 0.5, 0.1 * count, "length", (step,) * count)


class Cheat(FakeSpeculative):
    """Emits the id after the target's choice at one position, and goes on from there."""

    def __init__(
        self, name: str = "dynaspec+eagle2@4", position: int = 3, prompt_length: int | None = None
    ):
        super().__init__(name)
        self.position = position
        self.prompt_length = prompt_length

    def tokens(self, prompt_ids: Sequence[int], count: int) -> tuple[int, ...]:
        if self.prompt_length is not None and len(prompt_ids) != self.prompt_length:
            return greedy(prompt_ids, count)
        head = greedy(prompt_ids, min(self.position, count))
        if len(head) == count:
            return head
        wrong = next_token([*prompt_ids, *head]) + 1
        rest = greedy([*prompt_ids, *head, wrong], count - self.position - 1)
        return (*head, wrong, *rest)


class KilledAt(FakeAr):
    """Dies in its n-th call, as an interrupted process would, or of ``error``."""

    def __init__(self, call: int, error: BaseException | None = None):
        super().__init__()
        self.call = call
        self.error = KeyboardInterrupt() if error is None else error

    def run(self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int) -> TurnTrace:
        if len(self.calls) == self.call:
            raise self.error
        return super().run(prompt_ids, max_new_tokens, seed)


def lab(*methods: Any) -> Lab:
    """A lab of these arms."""
    return Lab(methods, FakeCodec(), FakeReference(), FACTS, {"drafter": {"bytes": 1}})
