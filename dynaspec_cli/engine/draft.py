"""Drafting for one request: what the drafter, the shortlist and the tree policy do in a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.device.at_once import Drafted, DraftsAtOnce, WholeRounds
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
    KeptRows,
    Shortlist,
    ShortlistQuery,
    TargetOutput,
    TreePolicy,
)
from dynaspec_cli.tree.graft import graft
from dynaspec_cli.tuning.costs import CostTable
from dynaspec_cli.tuning.pace import Pace
from dynaspec_cli.unread_tree import UnreadTree

MOST_STEPS = 6
"""Draft steps that a tree is expected to take at most before any was seen."""


@dataclass(frozen=True)
class Speculation:
    """What drafts: the three independent choices. ``shortlist`` is None for a drafter that has no
    head. ``policy`` serves one request and grows trees of ``size`` nodes. ``temperature``: of the
    drafter's distribution. ``lookup``: drafts beside the drafter, in the same trees.

    ``costs``: of rounds on this machine; with them each round has the size that ``Pace`` chooses,
    from policies that ``resized`` makes (with the same random numbers), and ``prior`` is what is
    expected of a tree's nodes before any was seen (tuning/prior.py). ``at_once``: drafts whole
    rounds on the device, where it can.
    """

    drafter: Drafter
    shortlist: Shortlist | None
    policy: TreePolicy
    temperature: float = 1.0
    lookup: LookupDrafter | None = None
    size: int = 0
    costs: CostTable | None = None
    resized: Callable[[int], TreePolicy] | None = None
    prior: tuple[float, ...] = ()
    at_once: DraftsAtOnce | None = None

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
    at each draft step of the last round, of a shortlist; ``depth``: draft steps of it; both once
    its tree was read. ``kept``:
    the drafter's state of an earlier request, the first ``shared`` tokens of which are the prompt's
    too."""

    def __init__(
        self,
        parts: Speculation,
        prompt: Tensor,
        prefill: TargetOutput,
        max_length: int,
        kept: object | None = None,
        shared: int = 0,
    ) -> None:
        self.parts = parts
        known = parts.drafter.rewind(kept, prompt[:shared], max_length) if shared else 0
        self.drafter = kept if known else parts.drafter.begin(prompt, max_length)
        self.shortlist = None if parts.shortlist is None else parts.shortlist.begin(prompt, prefill)
        self.selections: list[object] = []
        self.sizes: list[int] = []
        self.depth = 0
        self.policies = {parts.size: parts.policy}
        self.pace: Pace | None = None
        if parts.costs is not None and parts.resized is not None:
            self.pace = Pace(parts.costs, parts.size, MOST_STEPS, parts.prior)
        self.beside: Beside | None = None
        self.share = Share(Continuations(), alone=False)
        self.at_once: WholeRounds | None = None
        if parts.at_once is not None:
            self.at_once = parts.at_once.begin(self.drafter, self.shortlist)
        self.grown: DraftTree | None = None
        self.waiting: list[Committed] = []
        if parts.lookup is not None:
            self.beside = Beside(parts.lookup.begin(prompt, max_length), parts.costs)
            self.beside.lookup.append(prompt[1:].tolist())
        known = max(known, 1)
        if prompt.numel() > known:  # read before the first token; the rest comes with its round
            rows = torch.arange(known - 1, prompt.numel() - 1)
            parts.drafter.extend(self.drafter, Committed(prefill, rows, prompt[known:]))

    def grow(self, committed: Committed, clock: PhaseClock) -> DraftTree | UnreadTree:
        """Take in what was settled, then grow a tree under its last token: the drafter's, with
        continuations that lookup finds, or one of these alone, or none. A tree that is yet to be
        read is read before ``observe``."""
        self.selections, self.sizes, self.depth, self.grown = [], [], 0, None
        root = committed.tokens[-1:]
        with clock("tree"):
            nodes = self.parts.size if self.pace is None else self.pace.next()
            found = self._look_up(committed.tokens.tolist(), nodes)
        if (self.pace is not None and nodes == 0) or self.share.alone:
            self._postpone(committed)
            return graft(root_only(int(root)), found.tokens, found.parents)
        policy = self._policy(nodes - len(found.tokens))
        committed = self._with_postponed(committed)
        tree: DraftTree | UnreadTree | None = self._grown_at_once(policy, committed, clock)
        if tree is None:
            tree = self.grown = self._grow_step_by_step(policy, committed, clock)
        if not found.tokens:
            return tree
        with clock("tree"):
            tree = tree.landed() if isinstance(tree, UnreadTree) else tree
            return graft(tree, found.tokens, found.parents)

    def _grown_at_once(
        self, policy: TreePolicy, committed: Committed, clock: PhaseClock
    ) -> UnreadTree | None:
        """The tree of a round that is drafted on the device, as a whole; None where it is not."""
        if self.at_once is None:
            return None
        with clock("draft_body"):
            return self.at_once.grow(policy, committed, self.parts.temperature, self._arrived)

    def _arrived(self, drafted: Drafted) -> DraftTree:
        """What the device drafted was read."""
        self.grown, self.sizes, self.selections = drafted
        self.depth = len(self.sizes)
        return drafted.tree

    def _grow_step_by_step(
        self, policy: TreePolicy, committed: Committed, clock: PhaseClock
    ) -> DraftTree:
        drafter, root = self.parts.drafter, committed.tokens[-1:]
        tree = policy.begin(int(root))
        with clock("draft_body"):
            rows = drafter.extend(self.drafter, committed)
        scored = self._score(policy, rows, root, clock)
        while True:
            with clock("tree"):
                frontier: Frontier | None = policy.grow(tree, scored)
            if frontier is None:
                break
            with clock("draft_body"):
                rows = drafter.step(self.drafter, frontier)
            scored = self._score(policy, rows, frontier.tokens, clock)
        with clock("tree"):
            return policy.finish(tree)

    def _look_up(self, tokens: list[int], nodes: int) -> Continuations:
        """Continuations for a round in which the drafter would grow ``nodes`` nodes."""
        if self.beside is not None:
            rate = 0.0 if self.pace is None else self.pace.rate(nodes)
            self.share = self.beside.share(tokens, self.parts.size, nodes, rate)
        return self.share.found

    def _policy(self, nodes: int) -> TreePolicy:
        """Grows at most so many nodes; of the full size where sizes are fixed."""
        if self.parts.resized is None:
            return self.parts.policy
        if nodes not in self.policies:
            self.policies[nodes] = self.parts.resized(nodes)
        return self.policies[nodes]

    def _postpone(self, committed: Committed) -> None:
        """The drafter reads it when it is asked again; the shortlist follows the text meanwhile."""
        rows, tokens = committed.rows, committed.tokens
        kept = committed.output.keep(rows)
        self.waiting.append(Committed(kept, torch.arange(rows.numel()), tokens))
        if self.parts.shortlist is not None:
            self.parts.shortlist.settle(self.shortlist, tokens)

    def _with_postponed(self, committed: Committed) -> Committed:
        if not self.waiting:
            return committed
        parts = [*self.waiting, committed]
        tokens = torch.cat([part.tokens for part in parts])
        kept = KeptRows.joined([part.output.keep(part.rows) for part in parts])
        self.waiting = []
        return Committed(kept, torch.arange(tokens.numel()), tokens)

    def _score(
        self,
        policy: TreePolicy,
        rows: DraftRows | DraftHeadOutput,
        tokens: Tensor,
        clock: PhaseClock,
    ) -> DraftHeadOutput:
        """Candidates for the children of a frontier of ``tokens`` int64 [w]."""
        shortlist = self.parts.shortlist
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
        accepted = settled.numel() - 1
        own = 0 if self.grown is None else int((path[1:] <= self.grown.num_nodes).sum())
        if self.beside is not None:
            self.beside.observe(self.share, accepted, own)
        if self.pace is not None and self.grown is not None:
            self.pace.observe(self.grown, own, self.depth)
        shortlist = self.parts.shortlist
        if shortlist is None or self.grown is None:
            return None
        hits = [True] * accepted  # an accepted token was proposed, so it was scored
        if accepted < len(self.selections):
            selection = self.selections[accepted]
            hits.append(bool(shortlist.contains(self.shortlist, selection, settled[-1:])[0]))
        shortlist.observe(self.shortlist, tree, output, path, settled)
        return tuple(hits)
