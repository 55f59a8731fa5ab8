"""Policies whose shape follows the drafter's probabilities: the tree grows in ``ops.grow``, one
call a draft step, from the best tokens or from draws.

With draws, what verification may see is a *slot*, the k-th draw below a node, and whether a slot is
filled and kept never depends on the token drawn for it. With v the path probability of a node and d
the drafter's probabilities of what was drawn below it so far, a slot is worth v (1 - d_1 - ... -
d_(k-1)): the probability that verification arrives there if a token is accepted with its draft
probability (DySpec, arXiv 2410.11744, section 4.1). Slot values fall along a path and along
siblings, so the most valuable ones are a tree, and a slot that a drawn token could displace lies
below it or after it: this keeps the draws unbiased.

Within the shortlist d is conditional; the estimated mass of the shortlist turns it into a
probability again, in values only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.ops.grow import grow_best, grow_drawn, grown_tree, new_tree
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, Frontier
from dynaspec_cli.sampling.verify import Draw, NodeDraft, SampledDrafts
from dynaspec_cli.tree.sampled import Drawing


@dataclass
class GrownTree:
    """A round's tree (ops/reference_grow.py has the layout of ``nodes`` and ``values``). ``wide``:
    nodes in the frontier; ``level``: draft steps taken; ``laws``: (ids, q) of each, where children
    are drawn; ``shared``: some level's candidates were (``DraftHeadOutput.shared``)."""

    nodes: Tensor
    values: Tensor
    wide: int = 1
    level: int = 0
    laws: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    shared: bool = False

    def check(self, candidates: DraftHeadOutput) -> None:
        if candidates.log_q.shape[0] != self.wide:
            raise DynaSpecError(
                f"tree policy: expected candidates for {self.wide} nodes, got "
                f"{candidates.log_q.shape[0]} rows"
            )

    def advance(
        self, tokens: Tensor, parents: Tensor, source: Tensor, device: torch.device
    ) -> Frontier | None:
        """The host's as a frontier; None where it is empty."""
        self.wide = tokens.shape[0]
        if not self.wide:
            return None
        if device.type == "cpu":
            return Frontier(tokens, parents, source)
        return Frontier(*torch.stack((tokens, parents, source)).to(device))


class Grown:
    """What the policies below share. ``least``: value below which nothing is drafted;
    ``whole_beam``: nodes that cannot be verified any more stay in the beam."""

    name = "grown"
    needs_distribution = False
    logarithms = False
    whole_beam = False

    def __init__(self, config: TreeConfig, least: float = 0.0) -> None:
        self.size, self.depth, self.width = config.nodes, config.depth, config.width
        self.least = least

    def begin(self, root: int) -> GrownTree:
        levels = self.width + (self.depth - 1) * self.width * self.width
        return GrownTree(*new_tree(root, 1 + levels, 0.0 if self.logarithms else 1.0))

    def estimates(self, paths: Tensor) -> tuple[float, ...]:
        """``DraftTree.values`` of what paths are worth, best first."""
        return tuple((paths.exp() if self.logarithms else paths).tolist())

    def ends(self, level: int, beam_mass: float) -> bool:
        """Is drafting over after so many steps, with a beam of that probability?"""
        return level >= self.depth


class GrownBest(Grown):
    """Children are the best tokens in order; the ``size`` best nodes are kept and the ``width``
    best new ones expanded. Values are log-probabilities of paths, or probabilities."""

    def grow(self, state: GrownTree, candidates: DraftHeadOutput) -> Frontier | None:
        state.check(candidates)
        log_q, ids = candidates.log_q.cpu(), candidates.ids.cpu()
        tokens, parents, source, mass = grow_best(
            state.nodes,
            state.values,
            log_q,
            ids.contiguous(),
            self.size,
            self.width,
            self.least,
            self.logarithms,
            self.whole_beam,
        )
        if math.isnan(mass):
            raise NotFiniteError.of_drafter()
        state.level += 1
        over = self.ends(state.level, mass)
        if over:
            return None
        return state.advance(tokens, parents, source, candidates.ids.device)

    def finish(self, state: GrownTree) -> DraftTree:
        rows, paths, _, _ = grown_tree(state.nodes, state.values)
        return DraftTree(rows[0], rows[1], values=self.estimates(paths))


class GrownDrawn(Grown):
    """Children are drawn without replacement, up to ``width`` a node; the ``size`` most valuable
    slots are kept (of a level's, where a shortlist is shared by its frontier: a token drawn earlier
    could else decide whether its own slot is displaced) and the ``width`` most probable new nodes
    expanded. A slot worth less than ``least`` is not filled."""

    needs_distribution = True

    def __init__(self, config: TreeConfig, drawing: Drawing, least: float = 0.0) -> None:
        super().__init__(config, least)
        self.drawing = drawing

    def grow(self, state: GrownTree, candidates: DraftHeadOutput) -> Frontier | None:
        state.check(candidates)
        state.shared |= candidates.shared
        law = self.drawing.law(candidates)
        tokens, parents, source, q, mass = grow_drawn(
            state.nodes,
            state.values,
            law.log_probs,
            law.log_q,
            law.ids,
            law.uniforms(self.drawing.source, [self.width] * state.wide, False),
            self.size,
            self.least,
            *self.drawing.filters,
            state.shared,
        )
        if math.isnan(mass):
            raise NotFiniteError.of_drafter()
        state.laws.append((law.ids, q))
        state.level += 1
        over = self.ends(state.level, mass)
        if over:
            return None
        return state.advance(tokens, parents, source, candidates.ids.device)

    def finish(self, state: GrownTree) -> DraftTree:
        rows, paths, drawn, distinct = grown_tree(state.nodes, state.values)
        nodes = GrownDrafts(rows, state.laws)
        drafts = SampledDrafts(nodes, False, drawn, distinct, self.drawing.traversal)
        return DraftTree(rows[0], rows[1], drafts, self.estimates(paths))


class GrownDrafts(Mapping[int, NodeDraft]):
    """The draft of every row that has children, made when asked for: a walk visits few rows.
    ``rows`` as ``ops.grown_tree`` gives them."""

    def __init__(self, rows: Tensor, laws: Sequence[tuple[Tensor, Tensor]]) -> None:
        _, self._parents, self._columns, self._steps, self._places = rows.tolist()
        self._laws = laws

    def __getitem__(self, row: int) -> NodeDraft:
        below = [child for child, parent in enumerate(self._parents) if parent == row]
        if not below or row < 0:
            raise KeyError(row)
        ids, q = self._laws[self._steps[row]]
        draws = tuple(Draw(self._columns[child], child) for child in below)
        return NodeDraft(ids, q[self._places[row]], draws)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted({parent for parent in self._parents if parent >= 0}))

    def __len__(self) -> int:
        return len({parent for parent in self._parents if parent >= 0})
