"""What drafting has cost a request against what it has saved, by counts and the table of costs.

A round that takes c ms and yields t tokens saves t v - c, with v the pass over one row that plain
decoding pays for each of them. The sum over all rounds is the balance. A round is affordable if the
balance stays within the overdraft even where nothing that it drafts is accepted; so whatever is
accepted, at every moment

    balance >= -(allowance x v + SHARE x what plain decoding would have cost so far).
"""

from __future__ import annotations

ALLOWANCE, MEASURED_ALLOWANCE = 0.8, 2.0
"""Passes over one row that may be lost before anything was gained: a request's first tries. A
drafter whose acceptance was measured has more: what it promises was seen on other texts."""
SHARE = 0.01
"""Of plain decoding's time so far, what further tries may lose."""


class Account:
    """Of one request and one source of drafts. ``pass_ms``: plain decoding's milliseconds a
    token; ``allowance``: passes that may be lost at first."""

    def __init__(self, pass_ms: float, allowance: float = ALLOWANCE) -> None:
        self.pass_ms, self.allowance = pass_ms, allowance
        self.balance = 0.0
        self.plain = 0.0

    @property
    def overdraft(self) -> float:
        """Milliseconds that may be lost on the whole by now."""
        return self.allowance * self.pass_ms + SHARE * self.plain

    def affords(self, ms: float) -> bool:
        """May a round be tried that loses ``ms`` at worst?"""
        return self.balance - ms >= -self.overdraft

    def enter(self, saved_ms: float, tokens: int) -> None:
        """A round has ended that yielded ``tokens`` and saved so much (plain ones: nothing)."""
        self.balance += saved_ms
        self.plain += tokens * self.pass_ms
