"""How often a match of some length has told the next token, in this request.

A context of ``length`` tokens proposes the set of tokens that followed it before. Whether the token
that really comes lies in that set is seen for every token of prompt and output, drafted or not, so
the estimate needs no drafts to learn from. Old observations fade, since texts change.
"""

from __future__ import annotations

PRIOR = (0.15, 0.3, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9)
"""Before anything was seen, by class of length."""
CLASSES = (1, 2, 3, 4, 6, 9, 15)
"""The longest match of each class but the last."""
PRIOR_WEIGHT = 4.0
FADING = 0.97
"""What an observation keeps of its weight at each later one of its class: a memory of 33."""


def length_class(length: int) -> int:
    """The class of a match of ``length`` >= 1 tokens."""
    for index, longest in enumerate(CLASSES):
        if length <= longest:
            return index
    return len(CLASSES)


class Reliability:
    """Of one request. ``chance``: the probability that the next token is among those that followed
    a match, by the class of its length."""

    def __init__(self) -> None:
        self._hits = [p * PRIOR_WEIGHT for p in PRIOR]
        self._seen = [PRIOR_WEIGHT for _ in PRIOR]

    def chance(self, length: int) -> float:
        index = length_class(length)
        return self._hits[index] / self._seen[index]

    def observe(self, length: int, hit: bool) -> None:
        """A match of ``length`` tokens was followed by a token of its set, or by another."""
        index = length_class(length)
        self._hits[index] = self._hits[index] * FADING + hit
        self._seen[index] = self._seen[index] * FADING + 1.0
