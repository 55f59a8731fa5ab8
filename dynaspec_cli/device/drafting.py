"""Drafting on the device, as the engine sees it: one object a loaded model, one a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.device import context as contexts
from dynaspec_cli.device.at_once import Drafted
from dynaspec_cli.device.drafter import MOST_TREE_ROWS, FixedDrafter, fixed_drafter
from dynaspec_cli.device.graphs import Runner
from dynaspec_cli.device.growth import Growth, growth_of
from dynaspec_cli.device.pool import Pool
from dynaspec_cli.device.round import Inputs, Round
from dynaspec_cli.device.shortlist import (
    ContextRows,
    Rows,
    on_host,
    prefix_on_host,
    routed,
    rows_of,
)
from dynaspec_cli.device.uniforms import DrawnAhead
from dynaspec_cli.drafters.pairs import PairCache
from dynaspec_cli.protocols import (
    Committed,
    Drafter,
    DraftTree,
    Shortlist,
    Target,
    TreePolicy,
)
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.target.static.graphs import graph_pool
from dynaspec_cli.unread_tree import UnreadTree

MENTIONS = 256
"""Rows of the context that a round takes in; more are taken in before it."""


@dataclass(frozen=True)
class DeviceDrafting:
    """What drafts on the device for every request: the fixed forms of a drafter and a shortlist."""

    drafter: Drafter
    fixed: FixedDrafter
    shortlist: BlockShortlist[Any, Any]
    rows: Rows
    target: Target
    pool: Pool

    @staticmethod
    def of(drafter: Drafter, shortlist: Shortlist | None, target: Target) -> DeviceDrafting | None:
        """None where the drafter or the shortlist has no fixed form."""
        fixed = fixed_drafter(drafter)
        rows = None if shortlist is None else rows_of(shortlist)
        if fixed is None or rows is None or not isinstance(shortlist, BlockShortlist):
            return None
        early = isinstance(rows, ContextRows) and rows.router is not None and rows.router.early
        if early and fixed.features(torch.zeros(1, fixed.width)) is None:
            return None
        capacity = rows.capacity if isinstance(rows, ContextRows) else 0
        held = rows.head.num_rows if capacity else 0

        pool = graph_pool(target.device)

        def runner(state: PairCache) -> Runner:
            context = contexts.empty(held, capacity, target.device)
            return Runner(fixed.memory(state), context, pool)

        return DeviceDrafting(drafter, fixed, shortlist, rows, target, Pool(runner))

    def begin(self, drafter_state: Any, shortlist_state: Any) -> DeviceDraft:
        """Of a request whose states on the host have been made."""
        return DeviceDraft(self, drafter_state, shortlist_state)


class DeviceDraft:
    """A request's rounds. The host's states of drafter and shortlist stay what they were: a round
    may also be drafted by them, and they learn from every verification."""

    def __init__(self, parts: DeviceDrafting, drafter_state: Any, shortlist_state: Any) -> None:
        self.parts, self._drafter, self._shortlist = parts, drafter_state, shortlist_state
        self._runner: Runner | None = None
        self._growths: dict[int, Growth | None] = {}
        self._mentions: list[Tensor] = []
        self._policies: list[TreePolicy] = []  # kept alive: they are known by their identity
        if isinstance(parts.rows, ContextRows):
            shortlist_state.context.journal = self._mentions

    def grow(
        self,
        policy: TreePolicy,
        committed: Committed,
        temperature: float,
        arrived: Callable[[Drafted], DraftTree],
    ) -> UnreadTree | None:
        """A round with the policy's tree; None where it has to be drafted on the host."""
        parts = self.parts
        routed_ = routed(parts.rows, parts.shortlist, self._shortlist)
        growth = self._growth(policy, routed_)
        if growth is None:
            return None
        what = Round(
            growth,
            parts.fixed,
            parts.rows,
            parts.target,
            parts.shortlist.log_mass,
            temperature,
            routed_,
            growth.depth + 1,
            isinstance(parts.rows, ContextRows),
        )
        if max(what.tree_rows, what.pairs) > MOST_TREE_ROWS:
            return None
        committed = self._read_surplus(committed, what.pairs)
        source = getattr(getattr(policy, "drawing", None), "source", None)
        if growth.most_uniforms() and not isinstance(source, GeneratorSource):
            return None
        ahead = DrawnAhead(source, growth.most_uniforms()) if source is not None else None
        uniforms = torch.zeros(0, dtype=torch.float64) if ahead is None else ahead.values
        runner = self._ready(what.tree_rows + what.pairs)
        inputs = self._inputs(what, runner, committed, uniforms)
        outputs = runner.run(what, inputs)
        self._drafter_read(committed.tokens)

        def read(report: Tensor) -> DraftTree:
            selected, packed = report[: what.selected], report[what.selected :]
            tree, steps, used = growth.tree(packed, outputs.draws)
            if ahead is not None:
                ahead.settle(used)
            return arrived(self._drafted(what, tree, steps, selected))

        return UnreadTree(outputs.rows, outputs.draws, outputs.packed, read)

    def _growth(self, policy: TreePolicy, routed_: bool) -> Growth | None:
        key = 2 * id(policy) + routed_
        if key not in self._growths:
            self._growths[key] = growth_of(policy, routed_)
            self._policies.append(policy)
        return self._growths[key]

    @torch.inference_mode()
    def _ready(self, more: int) -> Runner:
        """The runner, with room for so many rows behind the committed ones; what the context
        mentioned is taken in anew where the runner is."""
        state = self._drafter
        state._make_room(more + 1)
        runner, new = self.parts.pool.runner(state)
        if (new or self._runner is not runner) and isinstance(self.parts.rows, ContextRows):
            runner.forget()
            self._mentions[:] = [self._shortlist.context.in_order()]
        self._runner = runner
        return runner

    def _read_surplus(self, committed: Committed, room: int) -> Committed:
        """Let the host's drafter read pairs that a round has no room for; the rest."""
        surplus = committed.tokens.numel() - room
        if surplus <= 0:
            return committed
        rows, tokens = committed.rows, committed.tokens
        self.parts.drafter.extend(
            self._drafter, Committed(committed.output, rows[:surplus], tokens[:surplus])
        )
        return replace(committed, rows=rows[surplus:], tokens=tokens[surplus:])

    def _inputs(
        self, what: Round, runner: Runner, committed: Committed, uniforms: Tensor
    ) -> Inputs:
        states = self.parts.fixed.states(committed)
        count, missing = committed.tokens.numel(), what.pairs - committed.tokens.numel()
        last = getattr(self._drafter, "last_token", 0)
        pad = torch.nn.functional.pad
        return Inputs(
            pad(states.float(), (0, 0, 0, missing)),
            pad(committed.tokens, (0, missing)),
            torch.tensor([count, self._drafter.length, last]),
            self._mentioned(runner),
            uniforms,
        )

    def _mentioned(self, runner: Runner) -> Tensor:
        """The latest ``MENTIONS`` rows, padded; earlier ones are added to the context first."""
        if not isinstance(self.parts.rows, ContextRows):
            return torch.empty(0, dtype=torch.int64)
        rows = torch.cat(self._mentions) if self._mentions else torch.empty(0, dtype=torch.int64)
        self._mentions.clear()
        *earlier, latest = rows.split(MENTIONS) if rows.numel() else (rows,)
        for piece in earlier:
            runner.mention(piece)
        return torch.nn.functional.pad(latest, (0, MENTIONS - latest.numel()), value=-1)

    def _drafter_read(self, tokens: Tensor) -> None:
        self.parts.fixed.committed(self._drafter, tokens)

    def _drafted(self, what: Round, tree: DraftTree, steps: int, selected: Tensor) -> Drafted:
        depth, rows = what.growth.depth, self.parts.rows
        sizes: list[int] = selected[:depth].tolist()[:steps]
        selections: list[Selection] = []
        start = depth
        for level, size in enumerate(sizes):
            if isinstance(rows, ContextRows):
                end = start + rows.most(level, what.routed)
                selections.append(on_host(selected[start:end], size, what.routed))
                start = end
            else:
                selections.append(prefix_on_host(size))
        return Drafted(tree, sizes, selections)
