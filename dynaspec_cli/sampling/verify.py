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

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError
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


@dataclass(frozen=True)
class SampledDrafts:
    """``DraftTree.q`` of a policy that samples: the draft of every tree row that has children
    (points, draws or both). ``replacement``: whether draws are independent."""

    nodes: dict[int, NodeDraft]
    replacement: bool


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
        left = target(row)
        points, draft = children[row], None
        if drafts is not None and children[row]:
            draft = _draft_of(row, drafts, children[row])
            points = list(draft.points)
        accepted = None
        if points:
            accepted, left = _try_points(left, points, tokens, source)
        if accepted is None and draft is not None and draft.draws:
            accepted, left = _try_draws(left, draft, tokens, drafts.replacement, source)
        if accepted is None:
            bonus = source.categorical(left)
            return Verdict(torch.tensor(path, dtype=torch.int64), bonus)
        path.append(accepted)


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


def _try_points(
    p: Tensor, rows: list[int], tokens: list[int], source: RandomSource
) -> tuple[int | None, Tensor]:
    """(accepted child or None, R of any positive sum): point masses, given R = p of any positive
    sum."""
    ids = torch.tensor([tokens[row] for row in rows])
    chances = p[ids].tolist()
    left = float(p.sum(dtype=torch.float64))
    tried: set[int] = set()
    for row, chance in zip(rows, chances, strict=True):
        if tokens[row] in tried:
            continue  # R is 0 there
        if source.accept(chance / left):
            return row, p
        tried.add(tokens[row])
        left -= chance
        if left <= 0:
            break
    residual = p.clone()
    residual[ids] = 0
    if not bool(residual.any()):
        return _rounded_away(rows, chances), p
    return None, residual


def _rounded_away(rows: list[int], chances: list[float]) -> int:
    """The children hold all of p and each was rejected, which only rounding (about 1e-16) can do:
    the last possible one is the answer."""
    return [row for row, chance in zip(rows, chances, strict=True) if chance > 0][-1]


def _try_draws(
    p: Tensor, draft: NodeDraft, tokens: list[int], replacement: bool, source: RandomSource
) -> tuple[int | None, Tensor]:
    """(accepted child or None, R of any positive sum), given R = p of any positive sum. R and D
    live on the shortlist, in float64; R outside it is p times a factor, whose sum is
    ``outside``."""
    ids, rest = draft.ids.to(p.device), p.clone()
    rest[ids] = 0
    factor = 1.0 / float(p.sum(dtype=torch.float64))
    outside = float(rest.sum(dtype=torch.float64)) * factor
    residual = p[ids].cpu().double() * factor
    d = draft.q.double()
    d = d / d.sum()
    for column, row in draft.draws:
        if int(draft.ids[column]) != tokens[row] or not float(d[column]) > 0:
            raise DynaSpecError(f"DraftTree.q: row {row} holds a token that its q cannot draw")
        if source.accept(float(residual[column]) / float(d[column])):
            return row, p
        after = (residual - d).clamp_(min=0)
        total = float(after.sum()) + outside
        if not total > 0:
            return row, p  # R = D up to rounding, and x was rejected by it
        residual, outside, factor = after / total, outside / total, factor / total
        if not replacement:
            d = d.clone()
            d[column] = 0
            mass = float(d.sum())
            if not mass > 0:
                break
            d = d / mass
    rest = rest.double().mul_(factor)
    rest[ids] = residual.to(p.device)
    return None, rest
