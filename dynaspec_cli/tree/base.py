"""A growing tree and its bookkeeping in plain Python, for policies that the extension does not
grow."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier

ROOT = 0
"""Node 0 is the root; drafted nodes are numbered in the order of their creation, parents first."""


@dataclass
class GrowingTree:
    """A tree under way. Per node: ``tokens``, ``parents``, ``scores`` (the estimated probability
    that the path down to the node is accepted, or its log: the policy's choice) and ``rows``, its
    temporary row in the drafter's cache (-1: not stepped, and the root).

    ``frontier`` holds the nodes whose children the next candidates are, in row order; ``level`` the
    levels grown so far; ``best`` the nodes that would be verified now, as sorted (-priority, node).
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    scores: list[float] = field(default_factory=lambda: [0.0])
    rows: list[int] = field(default_factory=lambda: [-1])
    frontier: list[int] = field(default_factory=lambda: [ROOT])
    level: int = 0
    stepped: int = 0
    best: list[tuple[float, int]] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def add(self, parent: int, token: int, score: float) -> int:
        """Append a node; returns its number."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.scores.append(score)
        self.rows.append(-1)
        return len(self.tokens) - 1

    def bound(self, size: int) -> float:
        """A priority at or below this can no longer enter the best ``size`` nodes."""
        return -self.best[size - 1][0] if len(self.best) >= size else -math.inf

    def offer(self, nodes: Iterable[tuple[float, int]], size: int) -> None:
        """Let (-priority, node) pairs compete for the best ``size``; a tie goes to the older
        node."""
        self.best.extend(nodes)
        self.best.sort()
        del self.best[size:]

    def take(self, candidates: DraftHeadOutput) -> tuple[list[list[float]], list[list[int]]]:
        """(log_q, ids) of the candidates as lists; counts the level."""
        if candidates.log_q.shape[0] != len(self.frontier):
            raise DynaSpecError(
                f"tree policy: expected candidates for {len(self.frontier)} nodes, got "
                f"{candidates.log_q.shape[0]} rows"
            )
        self.level += 1
        self.device = candidates.ids.device
        log_q, ids = candidates.log_q.tolist(), candidates.ids.tolist()
        for scores, tokens in zip(log_q, ids, strict=True):
            while tokens and tokens[-1] < 0:  # CUDA's padding of a shortlist of fewer than k
                del scores[-1], tokens[-1]
        return log_q, ids

    def expand(self, nodes: list[int]) -> Frontier:
        """Make ``nodes`` (children of the last frontier) the next frontier."""
        place = {node: i for i, node in enumerate(self.frontier)}
        above = [self.parents[node] for node in nodes]
        frontier = torch.tensor(
            [
                [self.tokens[node] for node in nodes],
                [self.rows[parent] for parent in above],
                [place[parent] for parent in above],
            ],
            dtype=torch.int64,
            device=self.device,
        )
        for i, node in enumerate(nodes):
            self.rows[node] = self.stepped + i
        self.stepped += len(nodes)
        self.frontier = nodes
        tokens, parents, source = frontier.unbind(0)
        return Frontier(tokens, parents, source)

    def tree(self, nodes: Sequence[int]) -> DraftTree:
        """The tree to verify: the root and ``nodes``, ascending and with every node's parent among
        them."""
        place = {node: row for row, node in enumerate([ROOT, *nodes])}
        rows = torch.tensor(
            [
                [self.tokens[node] for node in place],
                [-1, *(place[self.parents[node]] for node in nodes)],
            ],
            dtype=torch.int64,
        )
        return DraftTree(rows[0], rows[1])


def add_candidates(
    tree: GrowingTree, candidates: DraftHeadOutput, width: int, floor: float
) -> list[tuple[float, int]]:
    """Add every candidate whose path score exceeds ``floor``: at most ``width`` children of each
    frontier node, best first. Returns (-score, node) in order of creation (frontier row, then
    rank).

    A score never exceeds its parent's (a log-probability is clamped to 0 from above, which only
    rounding needs), so the best nodes of a tree are always connected.
    """
    log_q, ids = tree.take(candidates)
    fresh = []
    for i, parent in enumerate(tree.frontier):
        above, tokens = tree.scores[parent], ids[i]
        for j, value in enumerate(log_q[i][:width]):
            score = above + value if value < 0.0 else above
            if score <= floor:
                break  # candidates come best first
            if value != value:
                raise NotFiniteError.of_drafter()
            fresh.append((-score, tree.add(parent, tokens[j], score)))
    return fresh


def best_nodes(scored: list[tuple[float, int]], count: int) -> list[int]:
    """The nodes of the ``count`` best (-score, node), best first."""
    return [node for _, node in heapq.nsmallest(count, scored)]
