"""Coverage: how often the target's token is in the shortlist, measured on held-out text without
decoding.

A text is walked as decoding would walk it. At each root the policy chooses a shortlist for every
draft position; the target's top token at that position is looked up in it. Then ``advance`` tokens
are committed, the policy observes the target's top tokens at the positions so verified, and the
walk goes on. Where a router reads the drafter's output and no drafter is given, the target's own
features stand in, which flatters it; the caller says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.protocols import DraftTree, KeptRows, ShortlistQuery, Target
from dynaspec_cli.shortlist.base import BlockShortlist

DEPTH = 3
ADVANCE = 2


@dataclass(frozen=True)
class HeldOutText:
    """tokens int64 [T]; features [T, d] before the final norm; top int64 [T, k] the target's best
    tokens after each position; ``prompt`` tokens count as the prompt; ``drafted`` [T, d] a
    drafter's predicted features, or None."""

    tokens: Tensor
    features: Tensor
    top: Tensor
    prompt: int
    group: str = "all"
    drafted: tuple[Tensor, ...] = ()

    def inputs(self, depth: int) -> Tensor:
        """Features [T, d] that stand for draft step ``depth``'s output; step 0: the target's
        own."""
        if depth == 0 or not self.drafted:
            return self.features
        return self.drafted[min(depth, len(self.drafted)) - 1]


@dataclass
class WalkOutput:
    """The part of ``TargetOutput`` that policies observe, from stored top tokens."""

    features: Tensor
    top: Tensor

    cheap_rows: int | None = None
    rows_ranked: Tensor | None = None
    taps: Tensor | None = None

    def logits(self, rows: Tensor | None = None) -> Tensor:
        raise NotImplementedError("a stored walk holds the top tokens only")

    def logits_at(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        raise NotImplementedError("a stored walk holds the top tokens only")

    def argmax(self, rows: Tensor | None = None) -> Tensor:
        return self.leaders(1, rows)[:, 0]

    def leaders(self, k: int, rows: Tensor | None = None) -> Tensor:
        return (self.top if rows is None else self.top[rows])[:, :k]

    def keep(self, rows: Tensor) -> KeptRows:
        raise NotImplementedError("a stored walk is not kept a second time")


@dataclass
class Coverage:
    """Hits and positions by (group, draft position); ``rows`` scored in all ``selections``."""

    hits: dict[tuple[str, int], int] = field(default_factory=dict)
    seen: dict[tuple[str, int], int] = field(default_factory=dict)
    rows: int = 0
    selections: int = 0

    def add(self, group: str, depth: int, hit: bool) -> None:
        key = (group, depth)
        self.hits[key] = self.hits.get(key, 0) + int(hit)
        self.seen[key] = self.seen.get(key, 0) + 1

    def share(self, group: str | None = None, depth: int | None = None) -> float | None:
        """Covered share of the positions of a group and depth (None: all); None where there are
        none."""
        keys = [k for k in self.seen if group in (None, k[0]) and depth in (None, k[1])]
        seen = sum(self.seen[k] for k in keys)
        return sum(self.hits[k] for k in keys) / seen if seen else None

    @property
    def mean_size(self) -> float:
        return self.rows / self.selections if self.selections else 0.0

    def groups(self) -> list[str]:
        return sorted({g for g, _ in self.seen})


def measure(
    shortlist: BlockShortlist,
    target: Target,
    texts: Sequence[HeldOutText],
    depth: int = DEPTH,
    advance: int = ADVANCE,
    width: int = 4,
    group_of: Any = None,
) -> Coverage:
    """Walk all texts. ``width``: rows of a frontier beyond the first draft position; the true
    continuation's row is joined by rows of the positions before it, since a shortlist is shared by
    the frontier. ``group_of(text, token id)`` overrides the text's group."""
    found = Coverage()
    for text in texts:
        _walk(shortlist, target, text, depth, advance, width, group_of, found)
    return found


def _walk(
    shortlist: BlockShortlist,
    target: Target,
    text: HeldOutText,
    depth: int,
    advance: int,
    width: int,
    group_of: Any,
    found: Coverage,
) -> None:
    tokens, top, total = text.tokens, text.top, int(text.tokens.numel())
    p = max(2, min(text.prompt, total - 1))
    # The target's output at the last prompt token is the first root; its own top tokens are known
    # from the prefill.
    state = shortlist.begin(tokens[:p], WalkOutput(text.features[: p - 1], top[: p - 1]))
    root = p - 1
    while root < total - 1:
        for d in range(1, min(depth, total - root) + 1):
            at = root + d - 1
            first = at if d == 1 else max(1, at - width + 1)
            rows = torch.arange(at, first - 1, -1)
            before = text.inputs(d - 1)[rows - 1].to(target.device)
            query = ShortlistQuery(d, before, tokens[rows])
            selection = shortlist.select(state, query)
            hidden = target.norm(text.inputs(d)[rows])
            size = shortlist.score(state, selection, hidden, 1).size
            label = top[at, :1]
            hit = bool(shortlist.contains(state, selection, label)[0])
            group = text.group if group_of is None else group_of(text, int(label))
            found.add(group, d, hit)
            found.rows, found.selections = found.rows + size, found.selections + 1
        last = min(root + advance, total - 1)
        verified = torch.arange(root, last)
        output: Any = WalkOutput(text.features[verified], top[verified])
        tree = DraftTree(tokens[root:last], torch.arange(-1, last - root - 1))
        settled = tokens[root + 1 : last + 1]
        shortlist.observe(state, tree, output, torch.arange(last - root), settled)
        root = last
