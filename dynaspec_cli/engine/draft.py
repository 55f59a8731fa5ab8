"""Drafting for one request: what the drafter, the shortlist and the tree policy do in a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.device.at_once import Drafted, DraftsAtOnce, WholeRounds
from dynaspec_cli.drafters.lookup.beside import Beside, Share
from dynaspec_cli.drafters.lookup.continuations import Continuations
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.clock import PhaseClock
from dynaspec_cli.engine.prefix_cache import PrefixCache
from dynaspec_cli.engine.reading import FIRST_TOKENS, MOST_TOKENS, Reading
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
from dynaspec_cli.tuning.costs import CostTable
from dynaspec_cli.tuning.pace import Pace, Round
from dynaspec_cli.unread_tree import UnreadTree


@dataclass(frozen=True)
class Speculation:
    """What drafts: the three independent choices. ``shortlist`` is None for a drafter that has no
    head. ``policy`` serves one request and grows trees of ``size`` nodes. ``temperature``: of the
    drafter's distribution. ``lookup``: drafts beside the drafter, in the same trees.

    ``costs``: of rounds on this machine; with them each round has the size that ``Pace`` chooses,
    from policies that ``resized`` makes (with the same random numbers), ``depth`` draft steps at
    most, and ``prior`` is what is expected of a tree's nodes before any was seen (tuning/prior.py),
    from acceptance that was ``measured`` or from an example. Where lookup is the ``drafter``, costs
    without ``resized`` make all rounds lookup's alone, as large as pays. ``at_once``: drafts whole
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
    measured: bool = False
    depth: int = 6
    at_once: DraftsAtOnce | None = None

    def __post_init__(self) -> None:
        if (self.drafter.head is None) != (self.shortlist is None):
            raise DynaSpecError(
                f"drafter {self.drafter.name}: a shortlist goes with a drafter's LM head, and only "
                "with one"
            )


NOTHING = Continuations()


def root_only(token: int) -> DraftTree:
    """The tree without nodes: what plain decoding verifies."""
    return DraftTree(torch.tensor([token]), torch.tensor([-1]))


class Draft:
    """The drafter's, the shortlist's and the tree's state of one request, whose text and rows
    ``history`` holds. ``sizes``: tokens scored at each draft step of the last round, of a
    shortlist; ``depth``: draft steps of it; both once its tree was read."""

    def __init__(
        self,
        parts: Speculation,
        prompt: Tensor,
        prefill: TargetOutput,
        max_length: int,
        history: PrefixCache[Any, Any],
    ) -> None:
        self.parts = parts
        self.shortlist = None if parts.shortlist is None else parts.shortlist.begin(prompt, prefill)
        self.selections: list[object] = []
        self.sizes: list[int] = []
        self.depth = 0
        self.policies = {parts.size: parts.policy}
        self.pace: Pace | None = None
        if parts.costs is not None and parts.resized is not None:
            self.pace = Pace(parts.costs, parts.size, parts.depth, parts.prior, parts.measured)
        self.beside: Beside | None = None
        self.share = Share(NOTHING, alone=False, whole=NOTHING)
        self.grown: DraftTree | None = None
        self.unseen: list[Tensor] = []  # settled tokens that the shortlist has not been told of
        self.read = 0
        window = MOST_TOKENS if self.pace is None else FIRST_TOKENS
        self.reading = Reading(parts.drafter, history, prompt, max_length, window)
        self.at_once = self._begun_at_once()
        if parts.lookup is not None:
            self.beside = Beside(parts.lookup.begin(prompt, max_length), parts.costs)
            self.beside.lookup.append(prompt[1:].tolist())
        elif isinstance(parts.drafter, LookupDrafter) and parts.costs is not None:
            self.beside = Beside(self.reading.state, parts.costs)
        self.most = parts.size if parts.lookup is not None or self.beside is None else 0

    def _begun_at_once(self) -> WholeRounds | None:
        if self.parts.at_once is None:
            return None
        return self.parts.at_once.begin(self.reading.state, self.shortlist)

    def grow(self, committed: Committed, clock: PhaseClock) -> DraftTree | UnreadTree:
        """Take in what was settled, then grow a tree under its last token: the drafter's, with
        continuations that lookup finds, or one of these alone, or none. A tree that is yet to be
        read is read before ``observe``."""
        self.selections, self.sizes, self.depth, self.grown = [], [], 0, None
        root = committed.tokens[-1:]
        with clock("tree"):
            nodes = self.most if self.pace is None else self.pace.next(self.reading.behind)
            found = self._look_up(committed.tokens, nodes)
        if (self.pace is not None and nodes == 0) or self.share.alone:
            self.unseen.append(committed.tokens)
            self.depth = found.levels
            alone = root_only(int(root))
            return graft(alone, found.tokens, found.parents) if found.tokens else alone
        policy = self._policy(nodes - len(found.tokens))
        committed = self._caught_up(committed)
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
            rows = drafter.extend(self.reading.state, committed)
        scored = self._score(policy, rows, root, clock)
        while True:
            with clock("tree"):
                frontier: Frontier | None = policy.grow(tree, scored)
            if frontier is None:
                break
            with clock("draft_body"):
                rows = drafter.step(self.reading.state, frontier)
            scored = self._score(policy, rows, frontier.tokens, clock)
        with clock("tree"):
            return policy.finish(tree)

    def _look_up(self, tokens: Tensor, nodes: int) -> Continuations:
        """Continuations for a round in which the drafter would grow ``nodes`` nodes."""
        if self.beside is not None:
            rate = 0.0 if self.pace is None else self.pace.rate(nodes)
            self.share = self.beside.share(tokens.tolist(), self.parts.size, nodes, rate)
        return self.share.found

    def _policy(self, nodes: int) -> TreePolicy:
        """Grows at most so many nodes; of the full size where sizes are fixed."""
        if self.parts.resized is None:
            return self.parts.policy
        if nodes not in self.policies:
            self.policies[nodes] = self.parts.resized(nodes)
        return self.policies[nodes]

    def _caught_up(self, committed: Committed) -> Committed:
        """What the drafter is to read before it drafts; the shortlist follows the text."""
        if self.pace is not None and (more := self.reading.wider) and self.pace.affords(more):
            self.reading.widen()
        self.read = self.reading.behind
        committed, anew = self.reading.catch_up(committed)
        if self.unseen and self.parts.shortlist is not None:
            self.parts.shortlist.settle(self.shortlist, torch.cat(self.unseen))
        self.unseen = []
        if anew:
            self.at_once = self._begun_at_once()
        return committed

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
        self.parts.drafter.observe(self.reading.state, tree, path)
        own = 0 if self.grown is None else int((path[1:] <= self.grown.num_nodes).sum())
        self._account(tree, settled, own)
        shortlist = self.parts.shortlist
        if shortlist is None or self.grown is None:
            return None
        accepted = settled.numel() - 1
        hits = [True] * accepted  # an accepted token was proposed, so it was scored
        if accepted < len(self.selections):
            selection = self.selections[accepted]
            hits.append(bool(shortlist.contains(self.shortlist, selection, settled[-1:])[0]))
        shortlist.observe(self.shortlist, tree, output, path, settled)
        return tuple(hits)

    def _account(self, tree: DraftTree, settled: Tensor, own: int) -> None:
        """What the round brought goes to those whose drafts it verified: ``own`` tokens were the
        drafter's."""
        matched = 0
        if self.beside is not None:
            matched = self.beside.observe(self.share, settled.tolist(), own)
        if self.pace is None:
            return
        if self.grown is None:
            self.pace.skip(settled.numel())
            return
        instead = len(self.share.whole.tokens)
        done = Round(self.depth, self.read, tree.num_nodes, own, settled.numel(), matched, instead)
        self.pace.observe(self.grown, done)
