"""What target and drafter have read, so that a request reads only what is new to it.

A request's state is that of the longest beginning that its prompt shares with the tokens of the
request before, found by token ids; rows beyond are dropped. Kept are the KV caches of target and
drafter, and of every committed row the feature (and taps) that the target yielded: the drafter's
pair at the seam needs the last one, and a shortlist and a drafter that begin anew are given all of
them, as a fresh request's are. Nothing else outlives a request: shortlists, tree policies and what
drafters learned from verifications begin anew. So where a row has the same bits in any pass
(``Target.bit_exact``) a request behaves as a fresh one, draft for draft, and a seed gives the same
text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dynaspec_cli.protocols import KeptRows, Target, TargetOutput

TargetState = TypeVar("TargetState")
DrafterState = TypeVar("DrafterState")

PIECE = 512
"""Prompt tokens between two looks at whether the request is still wanted."""


class PrefixCache(Generic[TargetState, DrafterState]):
    """The caches of one sequence of tokens, used by one request at a time."""

    def __init__(self, target: Target[TargetState]) -> None:
        self.target = target
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._state: TargetState | None = None
        self.tokens: list[int] = []
        """Committed: the last settled token of a request is not among them."""
        self.reused = 0
        """Tokens of the last prompt that were here already."""
        self._rows: list[KeptRows] = []
        self._taps: tuple[int, ...] = ()
        self._drafter: DrafterState | None = None
        self._drafter_shares = 0  # how far what the drafter read agrees with ``tokens``

    def read(self, prompt: Tensor, max_length: int, taps: tuple[int, ...]) -> Iterator[None]:
        """Read prompt int64 [m], what is shared with earlier tokens left out; yields between
        pieces. Afterwards ``state`` holds the prompt and room for ``max_length`` tokens, and
        ``output`` is there."""
        shared = self._share(prompt, taps)
        if self._state is None or taps != self._taps:
            self._state, self._taps = self.target.begin(max_length, taps), taps
        else:
            self.target.rewind(self._state, shared, max_length)
        self._rows = [KeptRows.joined(self._rows).first(shared)] if shared else []
        del self.tokens[shared:]
        self.reused = shared
        self._drafter_shares = min(self._drafter_shares, shared)
        for i, piece in enumerate(prompt[shared:].split(PIECE)):
            if i:
                yield
            output = self.target.prefill(self.state, piece)
            self.append(piece, output, torch.arange(piece.numel()))

    def _share(self, prompt: Tensor, taps: tuple[int, ...]) -> int:
        """Tokens that the prompt begins with and that were read; its last token is always read
        again, for the logits that follow it."""
        if taps != self._taps:
            return 0
        ids = prompt[:-1].tolist()
        pairs = enumerate(zip(ids, self.tokens, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(self.tokens)))

    @property
    def state(self) -> TargetState:
        """The target's state of what was read."""
        assert self._state is not None
        return self._state

    @property
    def output(self) -> TargetOutput:
        """What the target yielded for all tokens so far."""
        return self.target.recall(self._rows)

    def append(self, tokens: Tensor, output: TargetOutput, rows: Tensor) -> None:
        """Remember committed tokens int64 [m], the ``rows`` of ``output``."""
        self._rows.append(output.keep(rows))
        self.tokens += tokens.tolist()

    def kept(self, start: int) -> KeptRows:
        """What is kept of the rows of the tokens from ``start`` on."""
        count = len(self.tokens) - start
        pieces, there = [], 0
        for piece in reversed(self._rows):
            if there >= count:
                break
            pieces.append(piece)
            there += len(piece)
        joined = KeptRows.joined(pieces[::-1])
        return joined if there == count else joined.keep(torch.arange(there - count, there))

    @property
    def drafter(self) -> tuple[DrafterState | None, int]:
        """The drafter's state of an earlier request, and with how many of the tokens what it has
        read agrees."""
        return self._drafter, self._drafter_shares

    def follow(self, state: DrafterState) -> None:
        """The drafter's ``state`` reads this request from its beginning on."""
        self._drafter, self._drafter_shares = state, sys.maxsize

    def drop_drafter(self) -> None:
        """Forget the drafter's state, which an interrupt may have left half changed; the target's
        stands such a thing (``Target.rewind``)."""
        self._drafter, self._drafter_shares = None, 0
