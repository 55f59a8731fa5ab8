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
docs/exactness.md has the proofs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.draw import CERTAIN, sibling_chances
from dynaspec_cli.ops.tree import greedy_walk
from dynaspec_cli.protocols import DraftTree, TargetOutput
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.reading import RowReader, read_at_once
from dynaspec_cli.sampling.source import RandomSource

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
        return probabilities(logits[row][None], config)[0]

    return of_row


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
    tokens, children = tree.tokens.tolist(), _children(tree)
    path = [0]
    while True:
        row = path[-1]
        accepted, left = _try_children(target(row), row, children[row], tokens, drafts, source)
        if accepted is None:
            bonus = source.categorical(left)
            return Verdict(torch.tensor(path, dtype=torch.int64), bonus)
        path.append(accepted)


def _try_children(
    p: Tensor,
    row: int,
    children: list[int],
    tokens: list[int],
    drafts: SampledDrafts | None,
    source: RandomSource,
) -> tuple[int | None, Tensor]:
    """(accepted child, p) or (None, what is left of p, of any positive sum)."""
    if not children:
        return None, p
    rows, columns, draft = children, [], NO_DRAWS
    if drafts is not None:
        draft = _draft_of(row, drafts, children)
        rows = [*draft.points, *(draw.row for draw in draft.draws)]
        columns = [draw.column for draw in draft.draws]
    chances, residual = sibling_chances(
        p,
        [tokens[child] for child in rows],
        columns,
        draft.ids,
        draft.q,
        drafts is not None and drafts.replacement,
    )
    for child, chance in zip(rows, chances.tolist(), strict=True):
        if math.isnan(chance):
            raise DynaSpecError(f"DraftTree.q: row {child} holds a token that its q cannot draw")
        if chance == CERTAIN or source.accept(chance):
            return child, p
    return None, residual


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
