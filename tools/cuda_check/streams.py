"""Streams without a GPU: work is done at once, and what a side stream made is remembered until the
main one has waited for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stream:
    """``made``: tensors that nobody has waited for; each has an attribute ``stream``."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.made: list[Any] = []

    def wait_stream(self, other: Stream) -> None:
        """What ``other`` made may be used here; what the main stream made may be used anywhere."""
        for tensor in other.made:
            tensor.stream = self
        other.made = []


MAIN = Stream()
_stack = [MAIN]


def current(device: torch.device | None = None) -> Stream:
    return _stack[-1]


@contextmanager
def _on_stream(stream: Stream) -> Iterator[None]:
    _stack.append(stream)
    try:
        yield
    finally:
        _stack.pop()


@contextmanager
def replaced(stand_ins: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """Attributes {(object, name): stand-in} until the end of the block."""
    before = {place: getattr(*place) for place in stand_ins}
    try:
        for place, stand_in in stand_ins.items():
            setattr(*place, stand_in)
        yield
    finally:
        for place, original in before.items():
            setattr(*place, original)


@contextmanager
def pretended_streams() -> Iterator[None]:
    """``torch.cuda``'s streams, replaced by these."""
    stand_ins: dict[tuple[Any, str], Any] = {
        (torch.cuda, "Stream"): Stream,
        (torch.cuda, "stream"): _on_stream,
        (torch.cuda, "current_stream"): current,
        (torch.Tensor, "record_stream"): lambda tensor, stream: None,
    }
    with replaced(stand_ins):
        yield
