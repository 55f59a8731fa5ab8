"""NanoSpec's shortlist (arXiv 2605.26444): no training, only what the context and the target's
outputs show.

The set holds the prompt's tokens, the target's top 3 at each prefilled and each verified position
and all drafted tokens. Unlike the published code the set belongs to a request, is capped and
forgets the least recently seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.protocols import DraftTree, ShortlistQuery, TargetOutput
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.shortlist.context import ContextTokens
from dynaspec_cli.shortlist.registry import DEFAULT_SIZES
from dynaspec_cli.shortlist.request import ShortlistRequest

TARGET_TOP = 3
"""The target's best tokens kept a position."""
PREFILL_POSITIONS = 16
"""Prompt positions, counted from the end, whose top tokens are kept. Each costs a full-vocabulary
row before the first token, and more of them bring next to nothing; the published method takes all
(docs/methods/shortlists.md)."""


@dataclass
class ContextState:
    """``context``: the capped token set; ``cached``: blocks and size made from it, until it
    changes."""

    context: ContextTokens
    cached: tuple[Tensor, int] | None = None


def prefill_tokens(prefill: TargetOutput) -> Tensor:
    """The target's top tokens int64 [r] at the last ``PREFILL_POSITIONS`` prompt positions,
    earliest first."""
    total = int(prefill.features.shape[0])
    rows = torch.arange(max(0, total - PREFILL_POSITIONS), total)
    if rows.numel() == 0:
        return rows
    return prefill.leaders(TARGET_TOP, rows).reshape(-1)


def observe_context(
    context: ContextTokens, tree: DraftTree, output: TargetOutput, path: Tensor
) -> None:
    """Add all drafted tokens, and the target's top tokens at every row that verification ranked; at
    the accepted rows where it ranked none (sampling forms probabilities, and to rank a row takes
    another pass over its logits)."""
    rows = output.rows_ranked
    top = output.leaders(TARGET_TOP, path if rows is not None and not rows.numel() else rows)
    context.add(torch.cat([tree.tokens.to(top.device), top.reshape(-1)]))


def row_blocks(rows: Tensor) -> Tensor:
    """Ascending half-open ranges int32 [b, 2] that cover distinct rows [r], adjacent ones
    merged."""
    if rows.numel() == 0:
        return torch.empty((0, 2), dtype=torch.int32, device=rows.device)
    rows = rows.sort().values
    new = torch.ones(rows.numel(), dtype=torch.bool, device=rows.device)
    new[1:] = rows[1:] != rows[:-1] + 1
    starts = rows[new]
    ends = torch.cat([rows[:-1][new[1:]], rows[-1:]]) + 1
    return torch.stack([starts, ends], 1).to(torch.int32)


class NanoSpecShortlist(BlockShortlist[ContextState, Selection]):
    """At most ``size`` context tokens; the head may be in any order (the identity needs no
    copy)."""

    name = "nanospec"

    def begin(self, prompt: Tensor, prefill: TargetOutput) -> ContextState:
        context = ContextTokens(self.head, self.size)
        context.add(prompt)
        context.add(prefill_tokens(prefill))
        return ContextState(context)

    def select(self, state: ContextState, query: ShortlistQuery) -> Selection:
        if state.cached is None:
            blocks = row_blocks(state.context.host_rows())
            state.cached = (blocks.to(self.head.device), len(state.context))
        blocks, size = state.cached
        return Selection(blocks, size, shared=False)

    def settle(self, state: ContextState, tokens: Tensor) -> None:
        state.context.add(tokens)
        state.cached = None

    def observe(
        self,
        state: ContextState,
        tree: DraftTree,
        output: TargetOutput,
        path: Tensor,
        settled: Tensor,
    ) -> None:
        observe_context(state.context, tree, output, path)
        state.cached = None


def create(request: ShortlistRequest) -> NanoSpecShortlist:
    return NanoSpecShortlist(request.draft_head(), request.tokens(DEFAULT_SIZES["nanospec"]))
