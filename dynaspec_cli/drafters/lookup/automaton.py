"""A suffix automaton of a growing text (Blumer et al. 1985), with how often and how lately.

Each state stands for the strings that end at the same places of the text. Its transitions are the
tokens that have followed these strings, its suffix link the next shorter strings that also end
elsewhere. A text of n tokens makes at most 2 n states and 3 n transitions, and a token costs
amortised constant time.
"""

from __future__ import annotations

ROOT = 0
COUNTED = 32
"""Suffixes, longest first, whose counts a new token updates. Text has a few; a run of one token
repeated n times has n, and the short ones among them then count too little."""


class SuffixAutomaton:
    """Lists by state: ``next`` (token -> state), ``link``, ``length`` of the longest string,
    ``count`` of places where it ends, ``last``: the latest of these. ``end``: the state of the
    whole text."""

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        self.count = [0]
        self.last = [0]
        self.end = ROOT
        self.size = 0

    @property
    def match(self) -> int:
        """The state of the longest suffix of the text that has occurred in it before; the root
        where none has."""
        return max(self.link[self.end], ROOT)

    def append(self, token: int) -> None:
        """Add one token to the text."""
        following, link, length = self.next, self.link, self.length
        self.size += 1
        state = self._state({}, length[self.end] + 1, ROOT)
        at = self.end
        while at >= 0 and token not in following[at]:
            following[at][token] = state
            at = link[at]
        if at >= 0:
            found = following[at][token]
            if length[found] == length[at] + 1:
                link[state] = found
            else:
                # ``found`` stands for longer strings too, which do not end here: split it.
                copy = self._state(dict(following[found]), length[at] + 1, link[found])
                self.count[copy], self.last[copy] = self.count[found], self.last[found]
                while at >= 0 and following[at].get(token) == found:
                    following[at][token] = copy
                    at = link[at]
                link[found] = link[state] = copy
        self.end = state
        counted = COUNTED
        while state > ROOT and counted:
            self.count[state] += 1
            self.last[state] = self.size
            state, counted = link[state], counted - 1

    def _state(self, following: dict[int, int], length: int, link: int) -> int:
        self.next.append(following)
        self.link.append(link)
        self.length.append(length)
        self.count.append(0)
        self.last.append(0)
        return len(self.next) - 1
