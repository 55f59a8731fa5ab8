"""Lookup: continuations of the longest suffix match, proposed as a tree without any model.

The chance of a token x after a context of n tokens is estimated as in prediction by partial
matching (Cleary and Witten 1984): with the reliability r(n) of a match (reliability.py),

    d(x) = r(n) share(x) + (1 - r(n)) d'(x),

where share(x) is how often x followed this context among all that followed it, and d' the same of
the next shorter context, without the tokens that the longer ones have proposed. Among equally
frequent tokens the later comes first. The drafts are point masses, so that verification is exact at
every temperature whatever d says; d only ranks them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.drafters.lookup.automaton import ROOT, SuffixAutomaton
from dynaspec_cli.drafters.lookup.reliability import Reliability
from dynaspec_cli.protocols import Committed, DraftHeadOutput, DraftTree, Frontier

WIDTH = 8
"""Children proposed a node at most."""
SHORTER = 3
"""Contexts asked for one node: the longest match and the next shorter ones."""
FLOOR = 0.04
"""Path probability below which a token is not proposed, where nothing is known of what a row of a
verification costs."""


@dataclass(frozen=True)
class Node:
    """A place in the draft: the automaton's state of the context there, the length of that context
    and the estimated probability of the path."""

    state: int
    length: int
    chance: float


@dataclass
class LookupState:
    """``rows``: by row of the last output, the node that each of its tokens leads to. ``floor``:
    path probability below which nothing is proposed."""

    text: SuffixAutomaton
    reliability: Reliability
    rows: list[dict[int, Node]] = field(default_factory=list)
    floor: float = FLOOR

    @property
    def root(self) -> Node:
        """The end of the text."""
        match = self.text.match
        return Node(match, self.text.length[match], 1.0)

    def append(self, tokens: list[int]) -> None:
        """Add settled tokens, and learn how far the matches before them could be trusted."""
        text = self.text
        for token in tokens:
            match = text.match
            if match > ROOT:
                self.reliability.observe(text.length[match], token in text.next[match])
            text.append(token)


class LookupDrafter:
    """Proposes from the request's own prompt and output. ``floor``: path probability below which a
    token is not proposed."""

    name = "lookup"
    folder: Path | None = None
    head = None
    taps: tuple[int, ...] = ()

    def __init__(self, floor: float = FLOOR) -> None:
        self.floor = floor

    def describe(self) -> dict[str, Any]:
        return {"drafter_kind": "lookup"}

    def begin(self, prompt: Tensor, max_length: int) -> LookupState:
        state = LookupState(SuffixAutomaton(), Reliability(), floor=self.floor)
        state.text.append(int(prompt[0]))
        return state

    def extend(self, state: LookupState, committed: Committed) -> DraftHeadOutput:
        state.append(committed.tokens.tolist())
        return self._propose(state, [state.root])

    def step(self, state: LookupState, frontier: Frontier) -> DraftHeadOutput:
        places = zip(frontier.source.tolist(), frontier.tokens.tolist(), strict=True)
        return self._propose(state, [state.rows[row][token] for row, token in places])

    def observe(self, state: LookupState, tree: DraftTree, path: Tensor) -> None:
        """Nothing: what was settled comes with the next ``extend``."""

    def rewind(self, state: LookupState, prompt: Tensor, max_length: int) -> int:
        """The state is a function of the text that was read, to which tokens can be added; none can
        be taken away."""
        return state.text.size if state.text.size <= prompt.numel() else 0

    def _propose(self, state: LookupState, nodes: Sequence[Node]) -> DraftHeadOutput:
        state.rows = [children(state, node) for node in nodes]
        width = max(map(len, state.rows), default=0)
        ids = torch.full((len(state.rows), width), -1, dtype=torch.int64)
        log_q = torch.full((len(state.rows), width), -math.inf)
        for row, (found, above) in enumerate(zip(state.rows, nodes, strict=True)):
            if found:
                ids[row, : len(found)] = torch.tensor(list(found))
                chances = [math.log(node.chance / above.chance) for node in found.values()]
                log_q[row, : len(found)] = torch.tensor(chances)
        return DraftHeadOutput(log_q, ids, 0)


def children(lookup: LookupState, node: Node) -> dict[int, Node]:
    """Tokens that may follow a node with the nodes they lead to, the likeliest first; at most
    ``WIDTH``, none whose path is less likely than the floor."""
    text, reliability, floor = lookup.text, lookup.reliability, lookup.floor
    found: dict[int, Node] = {}
    state, length, left = node.state, node.length, node.chance
    for _ in range(SHORTER):
        if state <= ROOT or left < floor:
            break
        chance = reliability.chance(length)
        following = [item for item in text.next[state].items() if item[0] not in found]
        if left * chance >= floor:  # else no share of it is enough
            tokens = [
                (text.count[after], text.last[after], token, after) for token, after in following
            ]
            tokens.sort(reverse=True)
            total = sum(count for count, _, _, _ in tokens)
            for count, _, token, after in tokens[: WIDTH - len(found)]:
                path = left * chance * count / total
                if path < floor:
                    break
                found[token] = Node(after, length + 1, path)
        if following:
            left *= 1.0 - chance
        state = text.link[state]
        length = text.length[state] if state > ROOT else 0
    return dict(sorted(found.items(), key=lambda item: -item[1].chance))
