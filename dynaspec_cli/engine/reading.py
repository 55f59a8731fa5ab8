"""What a drafter reads of a request's text, and when.

A drafter reads when it is asked to draft, all that was settled since in one blocked pass; while it
is not asked it is not fed. It begins with the last ``FIRST_TOKENS`` of the text: its reading of a
prompt costs time before the first token, and a drafter that does not pay should not have cost it.
One that has paid reads what lies before them too, ``MOST_TOKENS`` in all at most: an EAGLE drafter
gets the distant text from the target's features, and long prompts are the target's to read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.engine.prefix_cache import PrefixCache
from dynaspec_cli.protocols import Committed, Drafter

FIRST_TOKENS = 64
MOST_TOKENS = 1024


class Reading:
    """A drafter's ``state`` of one request, over the text that ``history`` holds. ``window``: of
    the text's last tokens how many it begins with. A drafter without a head (lookup) reads the
    whole text, which takes no model."""

    def __init__(
        self,
        drafter: Drafter[Any],
        history: PrefixCache[Any, Any],
        prompt: Tensor,
        max_length: int,
        window: int,
    ) -> None:
        self.drafter, self.history, self.max_length = drafter, history, max_length
        self.window = max_length if drafter.head is None else window
        self.state: Any = None
        kept, shared = history.drafter
        known = 0
        if shared and prompt.numel() - 1 <= self.window:
            known = drafter.rewind(kept, prompt[:shared], max_length)
        if known:
            self.state, self.start, self.read = kept, 0, known - 1
            history.follow(kept)
        else:
            self._begin(max(0, prompt.numel() - 1 - self.window))
        if prompt.numel() - 1 > self.read:  # read before the first token
            self._read(prompt[self.read + 1 :])

    @property
    def behind(self) -> int:
        """Settled tokens that it would read before it drafts now."""
        return min(len(self.history.tokens) - self.read, self.window)

    @property
    def wider(self) -> int:
        """Tokens that it would read to know the text before its window too; 0: it does, or has been
        asked to."""
        wanted = min(len(self.history.tokens), MOST_TOKENS)
        return wanted if self.start and self.window < MOST_TOKENS else 0

    def widen(self) -> None:
        """Begin anew with ``MOST_TOKENS`` at the next draft."""
        self.window = MOST_TOKENS
        self.read = -1

    def catch_up(self, committed: Committed) -> tuple[Committed, bool]:
        """What the drafter is to consume now: what was ``committed`` last, with all that it has not
        read before. And has its state begun anew?"""
        total = len(self.history.tokens)
        missing = total - self.read
        anew = self.read < 0 or missing > self.window
        if anew:
            self._begin(max(0, total - self.window))
        elif missing <= committed.rows.numel():
            self.read = total
            return committed, False
        tokens = self.history.tokens[self.read + 1 :] + committed.tokens[-1:].tolist()
        kept = self.history.kept(self.read)
        self.read = total
        return Committed(kept, torch.arange(len(tokens)), torch.tensor(tokens)), anew

    def _begin(self, start: int) -> None:
        """A state that begins at token ``start``. Only one that has read from the beginning serves
        later requests."""
        self.start = self.read = start
        prompt = torch.tensor(self.history.tokens[start:])
        self.state = self.drafter.begin(prompt, self.max_length - start)
        if start:
            self.history.drop_drafter()
        else:
            self.history.follow(self.state)

    def _read(self, tokens: Tensor) -> None:
        """``tokens`` int64 [m] follow the rows from the first unread one on."""
        count = tokens.numel()
        kept = self.history.kept(self.read)
        self.drafter.extend(self.state, Committed(kept, torch.arange(count), tokens))
        self.read += count
