"""The continuations of a text that are worth verifying, as one tree: best-first, without a model.

Growing the most probable node first gives, for any number of nodes, the connected tree of the
largest sum of path probabilities, which is the expected number of accepted tokens (DySpec, arXiv
2410.11744, Algorithm 1, for drafts that are taken and not drawn).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from dynaspec_cli.drafters.lookup.drafter import LookupState, Node, children


@dataclass(frozen=True)
class Continuations:
    """``tokens``, ``parents`` (-1: the end of the text; else an index here, smaller than the
    node's own) and ``chances``, the estimated probability that the path down to the node is
    accepted; the most probable first."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    chances: tuple[float, ...] = ()

    @property
    def expected(self) -> float:
        """Expected number of accepted tokens."""
        return sum(self.chances)

    @property
    def levels(self) -> int:
        """Of the tree."""
        levels: list[int] = []
        for parent in self.parents:
            levels.append(1 if parent < 0 else levels[parent] + 1)
        return max(levels, default=0)

    def matched(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens``, which followed the text, lie on one path from its end."""
        child = {
            (p, t): node for node, (t, p) in enumerate(zip(self.tokens, self.parents, strict=True))
        }
        node = -1
        for count, token in enumerate(tokens):
            found = child.get((node, token))
            if found is None:
                return count
            node = found
        return len(tokens)

    def first(self, count: int, floor: float = 0.0) -> Continuations:
        """The ``count`` most probable nodes whose chance is at least ``floor``; still a tree."""
        kept = sum(chance >= floor for chance in self.chances[:count])
        return Continuations(self.tokens[:kept], self.parents[:kept], self.chances[:kept])


def continuations(state: LookupState, size: int, depth: int) -> Continuations:
    """At most ``size`` nodes down to level ``depth`` below the end of the text in ``state``."""
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    heap: list[tuple[float, int, int, int, Node]] = []

    def offer(node: Node, place: int, level: int) -> None:
        for token, below in children(state, node).items():
            # Ties go to the shallower node, so that a parent always comes first.
            heapq.heappush(heap, (-below.chance, level, place, token, below))

    offer(state.root, -1, 1)
    while heap and len(tokens) < size:
        _, level, parent, token, node = heapq.heappop(heap)
        tokens.append(token)
        parents.append(parent)
        chances.append(node.chance)
        if level < depth:
            offer(node, len(tokens) - 1, level + 1)
    return Continuations(tuple(tokens), tuple(parents), tuple(chances))
