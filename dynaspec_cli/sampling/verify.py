"""Which drafted tokens are kept, and the token that follows them; the output's law stays the
target's.

At a node with target distribution p and children x1, x2, ... the walk keeps a residual R, at first
p: what the emitted token must be drawn from given that all earlier children were rejected.

- deterministic drafts (point masses): accept x with R(x); else R(x) = 0 and R is renormalised;
- children drawn from q *without* replacement (DySpec Algorithm 3, Sequoia Algorithm 2): accept x
  with min(1, R(x)/D(x)), D at first q; else R = norm(max(R - D, 0)), D(x) = 0, D = norm(D);
- children drawn from q *with* replacement (SpecInfer's multi-step speculative sampling): the same
  with D = q throughout;
- both under one node (points of a lookup beside draws of a drafter): the points first, then the
  draws against the R that they left. A point may also have q > 0, or be drawn: the rules hold for
  any R and any D.

The walk visits few rows, so the distribution of a row is formed when it gets there (reading.py).
docs/methods/exactness.md has the proofs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.draw import CERTAIN, sibling_chances
from dynaspec_cli.ops.tree import greedy_walk
from dynaspec_cli.protocols import DecidingTarget, DraftTree, Target, TargetOutput
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.reading import RowReader, read_at_once
from dynaspec_cli.sampling.source import GeneratorSource, RandomSource
from dynaspec_cli.unread_tree import UnreadTree

LOGIT_ROWS = 32
"""Rows whose logits are held together at most: a tree of 1,024 rows at once would take 1 GiB."""

RowProbabilities = Callable[[int], Tensor]
"""Tree row -> the target's p [V] for the token that follows it."""


class Verdict(NamedTuple):
    """``path``: accepted tree rows int64 [a], root first. ``bonus``: the token after them (drawn
    from p or a residual)."""

    path: Tensor
    bonus: int


class Draw(NamedTuple):
    """One draw from a node's q: ``column`` of q; ``row`` of the tree that holds the token (with
    replacement two draws of one token share a row)."""

    column: int
    row: int


@dataclass(frozen=True)
class NodeDraft:
    """How the children of a node came to be: token ``ids`` int64 [S] (distinct), the distribution
    ``q`` [S] over them that was really drawn from (any positive sum), both on the host, and the
    ``draws`` in their order. ``points``: rows of deterministic children, tried before the draws, in
    this order; a token that is both has one row. Without draws ids and q may be empty.

    Points are exact whatever q is, as long as neither they nor their order depend on the draws.
    """

    ids: Tensor
    q: Tensor
    draws: tuple[Draw, ...]
    points: tuple[int, ...] = ()


NO_DRAWS = NodeDraft(torch.empty(0, dtype=torch.int64), torch.empty(0), ())


@dataclass(frozen=True)
class SampledDrafts:
    """``DraftTree.q`` of a policy that samples: the draft of every tree row that has children
    (points, draws or both). ``replacement``: whether draws are independent."""

    nodes: Mapping[int, NodeDraft]
    replacement: bool
    drawn: int = 0
    """Draws that the policy made, those that it discarded and repeated ones too."""
    distinct: int = 0
    """Nodes that they gave: a token drawn twice below a node is one."""
    traversal: bool = False
    """Verified from the leaves up, path by path, instead of child by child."""


def row_probabilities(
    tree: DraftTree, output: TargetOutput, config: SamplingConfig
) -> RowProbabilities:
    """p of a row of a target's output, formed when asked for: logits for the row and those that
    ``RowReader`` reads with it, the softmax and filters for the row alone."""
    reader = RowReader(tree, output, _children(tree))
    logits: dict[int, Tensor] = {}

    def of_row(row: int) -> Tensor:
        if row not in logits:
            rows = reader.rows(row)[:LOGIT_ROWS]
            logits.update(zip(rows, output.logits(torch.tensor(rows)), strict=True))
        # Children are tried and tokens drawn on the host, where a seed gives one text.
        return probabilities(logits[row][None], config)[0].cpu()

    return of_row


class Verified(NamedTuple):
    """A ``tree`` on the host, the target's ``output`` for its rows, and what is kept of them."""

    tree: DraftTree
    output: TargetOutput
    verdict: Verdict


def pass_and_verify(
    target: Target,
    state: Any,
    tree: DraftTree | UnreadTree,
    config: SamplingConfig,
    source: RandomSource,
) -> Verified:
    """A target pass over a tree and its verification, where the target does both if it can: the
    same uniforms are drawn in the same order. A tree that nobody has read is read after that, or
    before where the target cannot."""
    if isinstance(target, DecidingTarget) and (
        config.greedy or isinstance(source, GeneratorSource)
    ):
        ahead = None
        if not config.greedy and isinstance(source, GeneratorSource):
            ahead = source.ahead(tree.most_rows + 1)
        decision = target.decide(state, tree, config, ahead)
        if decision is not None:
            if isinstance(source, GeneratorSource):
                source.skip(decision.used)
            return Verified(decision.tree, decision.output, Verdict(decision.path, decision.bonus))
    if isinstance(tree, UnreadTree):
        tree = tree.landed()
    output = target.verify(state, tree)
    return Verified(tree, output, verify(tree, output, config, source))


def verify(
    tree: DraftTree, output: TargetOutput, config: SamplingConfig, source: RandomSource
) -> Verdict:
    """Verify a tree as ``config`` asks: greedy without logits, or by sampling. A tree of the root
    alone is plain decoding."""
    if config.greedy:
        return verify_greedy(tree, output)
    return verify_sampled(tree, row_probabilities(tree, output, config), source)


def verify_greedy(tree: DraftTree, output: TargetOutput) -> Verdict:
    """Follow the target's argmax from the root for as long as a child holds it."""
    if read_at_once(tree, output):
        choices = output.argmax().cpu()
        path = greedy_walk(tree.tokens, tree.parents, choices)
        return Verdict(path, int(choices[path[-1]]))
    children = _children(tree)
    reader = RowReader(tree, output, children)
    tokens, row, rows = tree.tokens.tolist(), 0, [0]
    known: dict[int, int] = {}
    while True:
        if row not in known:
            read = reader.rows(row)
            known.update(zip(read, output.argmax(torch.tensor(read)).tolist(), strict=True))
        child = next((c for c in children[row] if tokens[c] == known[row]), None)
        if child is None:
            return Verdict(torch.tensor(rows, dtype=torch.int64), known[row])
        row = child
        rows.append(row)


def verify_sampled(tree: DraftTree, target: RowProbabilities, source: RandomSource) -> Verdict:
    """Accept drafted tokens so that what is emitted is distributed as the target's own samples.

    ``target(row)`` gives p [V] (float32 or float64). The draft's distributions are in ``tree.q``
    (``SampledDrafts``), or the drafts are point masses (None). Raises DynaSpecError on a malformed
    ``tree.q``.
    """
    drafts = tree.q
    if drafts is not None and not isinstance(drafts, SampledDrafts):
        raise DynaSpecError(
            f"DraftTree.q: expected SampledDrafts or None, got {type(drafts).__name__}"
        )
    walk = _Walk(tree, target, source, drafts)
    if drafts is not None and drafts.traversal:
        verdict = walk.bottom_up(0, 1.0)
        if verdict is None:  # the root's weight stays 1
            raise DynaSpecError("traversal verification ended without a token")
        return verdict
    return walk.top_down()


@dataclass(frozen=True)
class _Walk:
    """One walk over a tree. ``target``, ``source`` and ``drafts`` as in ``verify_sampled``."""

    tree: DraftTree
    target: RowProbabilities
    source: RandomSource
    drafts: SampledDrafts | None
    path: list[int] = field(default_factory=lambda: [0])

    @cached_property
    def tokens(self) -> list[int]:
        return self.tree.tokens.tolist()

    @cached_property
    def children(self) -> list[list[int]]:
        return _children(self.tree)

    def verdict(self, left: Tensor) -> Verdict:
        """The walk ends at the last row of its path; the next token's law is ``left``."""
        bonus = self.source.categorical(left)
        return Verdict(torch.tensor(self.path, dtype=torch.int64), bonus)

    def top_down(self) -> Verdict:
        """Accept a child, then try its children."""
        while True:
            row = self.path[-1]
            p = self.target(row)
            if not self.children[row]:
                return self.verdict(p)
            rows, chances, left = self.siblings(p, row, 1.0)
            for child, chance in zip(rows, chances, strict=False):
                if chance == CERTAIN or self.source.accept(chance):
                    self.path.append(child)
                    break
            else:
                return self.verdict(left)

    def bottom_up(self, row: int, weight: float) -> Verdict | None:
        """Traversal verification (arXiv 2505.12398): the whole path down to a node is to be passed
        with probability ``weight`` = min(1, w R(x) / D(x)), w its parent's; but its children are
        asked first, and the node itself only where none of the paths through them is passed."""
        if not self.children[row]:
            passed = self.source.accept(weight)
            return self.verdict(self.target(row)) if passed else None
        rows, chances, left = self.siblings(self.target(row), row, weight)
        for child, chance in zip(rows, chances, strict=False):
            if chance > 0:
                self.path.append(child)
                verdict = self.bottom_up(child, min(chance, 1.0))
                if verdict is not None:
                    return verdict
                self.path.pop()
        return self.verdict(left) if self.source.accept(chances[-1]) else None

    def siblings(self, p: Tensor, row: int, weight: float) -> tuple[list[int], list[float], Tensor]:
        """(children in the order in which they are tried, their chances and the node's own, what is
        left of p)."""
        rows, columns, draft = self.children[row], [], NO_DRAWS
        if self.drafts is not None:
            draft = _draft_of(row, self.drafts, rows)
            rows = [*draft.points, *(draw.row for draw in draft.draws)]
            columns = [draw.column for draw in draft.draws]
        chances, left = sibling_chances(
            p,
            [self.tokens[child] for child in rows],
            columns,
            draft.ids,
            draft.q,
            self.drafts is not None and self.drafts.replacement,
            weight,
        )
        found = chances.tolist()
        for child, chance in zip(rows, found, strict=False):
            if math.isnan(chance):
                raise DynaSpecError(
                    f"DraftTree.q: row {child} holds a token that its q cannot draw"
                )
        return rows, found, left


def _draft_of(row: int, drafts: SampledDrafts, children: list[int]) -> NodeDraft:
    draft = drafts.nodes.get(row)
    if draft is None or {*draft.points, *(d.row for d in draft.draws)} != set(children):
        raise DynaSpecError(f"DraftTree.q: the points and draws at row {row} are not its children")
    return draft


def _children(tree: DraftTree) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in range(tree.num_nodes + 1)]
    for row, parent in enumerate(tree.parents.tolist()):
        if row:
            children[parent].append(row)
    return children
