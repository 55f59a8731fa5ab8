"""How much of the text is new: the share of its latest tokens that were not at hand without a
router.

Clusters are worth their time only where the target says what neither the frequent tokens nor the
context hold. Measured on the default model: a router costs a step some 2 % of its time, and a
percent of such tokens is worth a fifth of a percent of tau, so it pays from about a tenth on
(docs/methods/shortlists.md).
"""

from __future__ import annotations

WINDOW = 64
"""Tokens that the share looks back on, about."""
PRIOR = 0.25
PRIOR_TOKENS = 8
"""A text begins as if so many tokens had been seen, ``PRIOR`` of them new."""


class Novelty:
    """Running share of new tokens of one request: a mean over the first ``WINDOW`` tokens, then one
    that forgets."""

    def __init__(self) -> None:
        self.share = PRIOR
        self._seen = PRIOR_TOKENS

    def observe(self, new: bool) -> None:
        self._seen = min(self._seen + 1, WINDOW)
        self.share += (float(new) - self.share) / self._seen
