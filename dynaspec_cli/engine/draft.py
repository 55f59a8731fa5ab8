"""Drafting for one request: what the drafter, the shortlist and the tree policy do in a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.drafters.lookup.beside import Beside, Share
from dynaspec_cli.drafters.lookup.continuations import Continuations
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.clock import PhaseClock
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import (
    Committed,
    Drafter,
    DraftHeadOutput,
    DraftRows,
    DraftTree,
    Frontier,
    Shortlist,
    ShortlistQuery,
    TargetOutput,
    TreePolicy,
)
from dynaspec_cli.tree.graft import graft


@dataclass(frozen=True)
class Speculation:
    """What drafts: the three independent choices. ``shortlist`` is None for a drafter that has no
    head. ``policy`` serves one request. ``temperature``: of the drafter's distribution. ``lookup``:
    drafts beside the drafter, in the same trees of ``size`` nodes."""

    drafter: Drafter
    shortlist: Shortlist | None
    policy: TreePolicy
    temperature: float = 1.0
    lookup: LookupDrafter | None = None
    size: int = 0

    def __post_init__(self) -> None:
        if (self.drafter.head is None) != (self.shortlist is None):
            raise DynaSpecError(
                f"drafter {self.drafter.name}: a shortlist goes with a drafter's LM head, and only "
                "with one"
            )


def root_only(token: int) -> DraftTree:
    """The tree without nodes: what plain decoding verifies."""
    return DraftTree(torch.tensor([token]), torch.tensor([-1]))


class Draft:
    """The drafter's, the shortlist's and the tree's state of one request. ``sizes``: tokens scored
    at each draft step of the last round, of a shortlist; ``depth``: draft steps of it. ``kept``:
    the drafter's state of an earlier request, the first ``shared`` tokens of which are the prompt's
    too."""

    def __init__(
        self,
        parts: Speculation,
        prompt: Tensor,
        prefill: TargetOutput,
        max_length: int,
        kept: Any = None,
        shared: int = 0,
    ) -> None:
        self.parts = parts
        known = parts.drafter.rewind(kept, prompt[:shared], max_length) if shared else 0
        self.drafter = kept if known else parts.drafter.begin(prompt, max_length)
        self.shortlist = None if parts.shortlist is None else parts.shortlist.begin(prompt, prefill)
        self.selections: list[Any] = []
        self.sizes: list[int] = []
        self.depth = 0
        self.beside: Beside | None = None
        self.shared = Share(Continuations(), alone=False)
        self.own_rows = 0
        if parts.lookup is not None:
            self.beside = Beside(parts.lookup.begin(prompt, max_length))
            self.beside.lookup.append(prompt[1:].tolist())
        known = max(known, 1)
        if prompt.numel() > known:  # read before the first token; the rest comes with its round
            rows = torch.arange(known - 1, prompt.numel() - 1)
            parts.drafter.extend(self.drafter, Committed(prefill, rows, prompt[known:]))

    def grow(self, committed: Committed, clock: PhaseClock) -> DraftTree:
        """Feed what was settled, then grow a tree under its last token."""
        drafter, policy = self.parts.drafter, self.parts.policy
        self.selections, self.sizes, self.depth = [], [], 0
        root = committed.tokens[-1:]
        if self.beside is not None:
            with clock("tree"):
                self.shared = self.beside.share(committed.tokens.tolist(), self.parts.size)
        found = self.shared.found
        tree = policy.begin(int(root))
        with clock("draft_body"):
            rows = drafter.extend(self.drafter, committed)
        if self.shared.alone:
            self.own_rows = 0
            return graft(root_only(int(root)), found.tokens, found.parents)
        scored = self._score(rows, root, clock)
        while True:
            with clock("tree"):
                frontier: Frontier | None = policy.grow(tree, scored)
            if frontier is None:
                break
            with clock("draft_body"):
                rows = drafter.step(self.drafter, frontier)
            scored = self._score(rows, frontier.tokens, clock)
        with clock("tree"):
            grown = policy.finish(tree)
            self.own_rows = grown.num_nodes
            return graft(grown, found.tokens, found.parents) if found.tokens else grown

    def _score(
        self, rows: DraftRows | DraftHeadOutput, tokens: Tensor, clock: PhaseClock
    ) -> DraftHeadOutput:
        """Candidates for the children of a frontier of ``tokens`` int64 [w]."""
        shortlist, policy = self.parts.shortlist, self.parts.policy
        self.depth += 1
        if isinstance(rows, DraftHeadOutput):
            return rows
        assert shortlist is not None
        with clock("router"):
            query = ShortlistQuery(self.depth, rows.features, tokens)
            selection = shortlist.select(self.shortlist, query)
        with clock("head"):
            scored = shortlist.score(
                self.shortlist,
                selection,
                rows.hidden,
                policy.width,
                policy.needs_distribution,
                self.parts.temperature,
            )
        self.selections.append(selection)
        self.sizes.append(scored.size)
        return scored

    def observe(
        self, tree: DraftTree, output: TargetOutput, path: Tensor, settled: Tensor
    ) -> tuple[bool, ...] | None:
        """Let the parts learn from a verification. Was each settled token (accepted ones, then the
        bonus token) in the shortlist of its draft step? None without a shortlist."""
        self.parts.drafter.observe(self.drafter, tree, path)
        if self.beside is not None:
            own = int((path[1:] <= self.own_rows).sum())
            self.beside.observe(self.shared, path.numel() - 1, own)
        shortlist = self.parts.shortlist
        if shortlist is None:
            return None
        accepted = settled.numel() - 1
        hits = [True] * accepted  # an accepted token was proposed, so it was scored
        if accepted < len(self.selections):
            selection = self.selections[accepted]
            hits.append(bool(shortlist.contains(self.shortlist, selection, settled[-1:])[0]))
        shortlist.observe(self.shortlist, tree, output, path, settled)
        return tuple(hits)
