"""A draft tree from another package: a comb.

The best token of every level is expanded; the runners-up stand beside it as leaves. Whatever a
policy proposes, verification keeps the target's own text, so a policy can be bad but not wrong: all
that it owes is a tree whose parents precede their children.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.tree.request import TreeRequest


@dataclass
class GrowingComb:
    """One round's tree: ``tokens`` and ``parents`` by node (0 is the root), the node whose children
    come next, and how many levels there are."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    tip: int = 0
    levels: int = 0


class Comb:
    """At most ``size`` nodes on ``depth`` levels, ``width`` a level. Its tokens are not drawn, so
    that it proposes point masses and needs no distribution, also above temperature 0."""

    name = "comb"
    needs_distribution = False

    def __init__(self, config: TreeConfig) -> None:
        self.size, self.depth, self.width = config.nodes, config.depth, config.width

    def begin(self, root: int) -> GrowingComb:
        return GrowingComb([root])

    def grow(self, state: GrowingComb, candidates: DraftHeadOutput) -> Frontier | None:
        """The frontier is always one node, so the candidates are one row, best first; ids below 0
        pad a shortlist of fewer than ``width`` tokens."""
        room = self.size + 1 - len(state.tokens)
        ids = [token for token in candidates.ids[0].tolist() if token >= 0][: min(self.width, room)]
        parent, state.tip = state.tip, len(state.tokens)
        state.tokens += ids
        state.parents += [parent] * len(ids)
        state.levels += 1
        if not ids or len(ids) == room or state.levels == self.depth:
            return None
        # The drafter's rows of this round: the first frontier's node has the root for its parent
        # (-1), the next one row 0, and so on.
        below = torch.tensor([state.tokens[state.tip], state.levels - 2, 0])
        tokens, parents, source = below.to(candidates.ids.device).split(1)
        return Frontier(tokens, parents, source)

    def finish(self, state: GrowingComb) -> DraftTree:
        return DraftTree(torch.tensor(state.tokens), torch.tensor(state.parents))


def create(request: TreeRequest) -> Comb:
    """What the entry point names: makes the policy of one request."""
    return Comb(request.config)
