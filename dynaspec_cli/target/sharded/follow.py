"""What every rank but the first does: load its part of the model, then follow rank 0."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.target.sharded.launch import Launch
from dynaspec_cli.target.sharded.load import LoadRequest, load_part
from dynaspec_cli.target.sharded.ranks import (
    FAILED,
    REQUEST,
    SAID,
    Ranks,
    Store,
    of_connection,
)
from dynaspec_cli.target.sharded.target import ShardedState, ShardedTarget

LOOK = timedelta(seconds=5)
"""Between two looks at whether rank 0 has something to load."""
HEARD = timedelta(seconds=4)
"""For rank 0 to say why the processes end; torchrun may end it before it can."""
GRACE_S = 10
"""Seconds from SIGTERM to the end, within which rank 0 may finish a step."""

Describe = Callable[[Exception], tuple[str, int]]


def follow(launch: Launch, describe: Describe) -> int:
    """The exit code. Nothing is printed, unless it goes wrong here and rank 0 cannot say so;
    ``describe``: (message, exit code) of an exception."""
    stderr = _mute()
    # Ctrl-C and torchrun's SIGTERM are rank 0's to obey: it ends after a step, which needs us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    store = Store()
    ranks: Ranks | None = None
    try:
        if not (request := _request(store)):
            return 0
        part = LoadRequest(**json.loads(request))
        ranks = Ranks(launch, part.place(launch), store)
        target = load_part(part, ranks)
        _obey(target, ranks)
        return 0
    except Exception as error:
        message = describe(error)[0]
        if of_connection(error):
            message = "another process has ended, and all are needed; start them again"
        elif not store.has(FAILED):
            store.set(FAILED, f"rank {launch.rank}: {message}")
    if ranks is not None:
        ranks.close()
    code = store.get(SAID, HEARD)
    if code is None:
        os.write(stderr, f"Error: rank {launch.rank}: {' '.join(message.split())}\n".encode())
    return int(code or 1)


def _request(store: Store) -> str:
    """What rank 0 wants loaded; empty where it has ended without that."""
    while (found := store.get(REQUEST, LOOK)) is None:
        if os.getppid() == 1:  # torchrun is gone
            return ""
    return found


def _obey(target: ShardedTarget, ranks: Ranks) -> None:
    """Until rank 0 ends."""
    follower = Follower(target)
    while (message := ranks.receive())["operation"] != "end":
        follower.do(**message)


def _mute() -> int:
    """Standard output and error say nothing from here on; a descriptor of what was the latter."""
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return stderr


class Follower:
    """The operations of ``ShardedTarget.told``, by name."""

    def __init__(self, target: ShardedTarget) -> None:
        self.target = target
        self.states: dict[int, ShardedState] = {}

    @torch.inference_mode()
    def do(self, operation: str, freed: list[int], **arguments: Any) -> None:
        for number in freed:
            self.states.pop(number, None)
        with contextlib.suppress(DynaSpecError):  # a check of arguments, which rank 0 makes too
            getattr(self, operation)(**arguments)

    def begin(self, number: int, max_length: int, taps: list[int]) -> None:
        self.states[number] = self.target.begin(max_length, tuple(taps))

    def prefill(self, number: int, tokens: list[int]) -> None:
        self.target.prefill(self.states[number], _ids(tokens))

    def verify(self, number: int, tokens: list[int], parents: list[int], start: int) -> None:
        self.target.verify(self.states[number], DraftTree(_ids(tokens), _ids(parents)), start)

    def commit(self, number: int, rows: list[int]) -> None:
        self.target.commit(self.states[number], _ids(rows))

    def rewind(self, number: int, length: int, max_length: int) -> None:
        self.target.rewind(self.states[number], length, max_length)

    def own_logits(self, tokens: list[list[int]]) -> None:
        self.target.own_logits(torch.tensor(tokens, device=self.target.device))

    def embed(self, tokens: list[int]) -> None:
        self.target.embed(_ids(tokens))

    def embedding_rows(self, tokens: list[int]) -> None:
        self.target.embedding_rows(_ids(tokens))

    def logits(self, rows: int) -> None:
        self.target.head.logits(self._hidden(rows))

    def leaders(self, rows: int, k: int) -> None:
        self.target.head.leaders(self._hidden(rows), k)

    def at(self, ids: list[int]) -> None:
        self.target.head.at(self._hidden(len(ids)), _ids(ids))

    def whole(self) -> None:
        _ = self.target.head.weight

    def _hidden(self, rows: int) -> torch.Tensor:
        """Room for what rank 0 spreads."""
        target = self.target
        return torch.empty(rows, target.hidden_size, dtype=target.dtype, device=target.device)


def _ids(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)
