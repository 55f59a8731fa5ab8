"""One draft round as a function of tensors: what a CUDA graph holds.

    committed pairs ─► drafter ─► rows of the shortlist ─► head ─► tree ─► frontier ─► drafter ─► …

Which pairs are real, how long the cache is, what the context mentions and which uniforms decide the
draws is read from the inputs; nothing is read back, and no shape depends on data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.device.candidates import Candidates, Frontier
from dynaspec_cli.device.context import Context, add
from dynaspec_cli.device.drafter import FixedDrafter, Memory, Pass
from dynaspec_cli.device.draw import Uniforms
from dynaspec_cli.device.growth import Growth
from dynaspec_cli.device.head import score
from dynaspec_cli.device.selection import Selection
from dynaspec_cli.device.shortlist import PrefixRows, Rows
from dynaspec_cli.protocols import Target
from dynaspec_cli.unread_tree import UnreadDraws

COUNT, LENGTH, LAST = range(3)
NUMBERS = 3


class Inputs(NamedTuple):
    """``states`` float32 [e, width] and ``tokens`` int64 [e]: committed pairs, in order, then
    padding. ``numbers`` int64 [3]: how many pairs are real, committed pairs before them, the last
    of their tokens. ``mentions`` int64 [m]: rows of the head that the context mentioned, -1 is
    padding. ``uniforms`` float64 [u]."""

    states: Tensor
    tokens: Tensor
    numbers: Tensor
    mentions: Tensor
    uniforms: Tensor


class Outputs(NamedTuple):
    """``packed`` int64 goes to the host: for each draft step the number of rows that were scored,
    then, where ``Round.reports``, the rows themselves, one step after the other, and behind them
    the tree (``Finished.packed``). ``rows`` and ``draws`` stay; ``context`` is the next round's."""

    packed: Tensor
    rows: Tensor
    draws: UnreadDraws | None
    context: Context


@dataclass(frozen=True)
class Round:
    """The parts and shapes of a round. ``log_mass``: of the shortlist's share of the target's
    probability; ``temperature``: of the drafter's distribution. ``routed``: clusters are asked for;
    ``pairs``: committed pairs that it has room for; ``reports``: the host wants to know which rows
    were scored."""

    growth: Growth
    drafter: FixedDrafter
    rows: Rows
    target: Target
    log_mass: float
    temperature: float
    routed: bool
    pairs: int
    reports: bool

    @property
    def tree_rows(self) -> int:
        """Rows that the tree takes in the drafter's cache."""
        return sum(self.growth.rows(level) for level in range(1, self.growth.depth))

    @property
    def selected(self) -> int:
        """Numbers of ``Outputs.packed`` before the tree."""
        depth = self.growth.depth
        if not self.reports or isinstance(self.rows, PrefixRows):
            return depth
        return depth + sum(self.rows.most(level, self.routed) for level in range(depth))

    def __call__(self, inputs: Inputs, memory: Memory, context: Context) -> Outputs:
        numbers = inputs.numbers
        context = add(context, inputs.mentions)
        last = numbers[COUNT, None] - 1  # int64 [1]: a number's index would be read back
        hidden, fed = (x[last] for x in self._read(inputs, memory))
        features = self.drafter.features(inputs.states[last])
        root = inputs.tokens[last]
        state = self.growth.begin(root, Uniforms(inputs.uniforms, numbers[COUNT] * 0))
        live = torch.ones_like(root, dtype=torch.bool)
        length = numbers[LENGTH, None] + numbers[COUNT, None]
        frontier = Frontier(root, torch.zeros_like(root), live)
        above = _Rows.none(root)
        chosen: list[Selection] = []
        for level in range(self.growth.depth):
            if level:
                states = fed[frontier.source]
                features = self.drafter.features(states)
                rows, above = above.below(frontier, level, length)
                hidden, fed = self.drafter.run(memory, states, rows)
            candidates, selection = self._score(level, hidden, features, frontier, context)
            chosen.append(selection)
            state, following = self.growth.grow(state, level, candidates)
            if following is None:
                break
            frontier = following
        packed, rows_, draws = self.growth.finish(state)
        return Outputs(torch.cat([self._selected(chosen), packed]), rows_, draws, context)

    def _read(self, inputs: Inputs, memory: Memory) -> tuple[Tensor, Tensor]:
        """The pass over the committed pairs; padding goes to the cache's last row."""
        n, length = self.pairs, inputs.numbers[LENGTH, None]
        place = torch.arange(n, device=length.device)
        slots = torch.where(place < inputs.numbers[COUNT], length + place, memory.k[0].shape[0] - 1)
        earlier = (torch.ones_like(place) << (place + 1)) - 1
        current = torch.cat([inputs.numbers[LAST, None], inputs.tokens[:-1]])
        depth = torch.cat([place, place])
        rows = Pass(inputs.tokens, current, slots, length, depth, earlier)
        return self.drafter.run(memory, inputs.states, rows)

    def _score(
        self,
        level: int,
        hidden: Tensor,
        features: Tensor | None,
        frontier: Frontier,
        context: Context,
    ) -> tuple[Candidates, Selection]:
        if isinstance(self.rows, PrefixRows):
            selection = self.rows.select(level)
        else:
            scores = self._cluster_scores(hidden, features, frontier) if self.routed else None
            selection = self.rows.select(level, context, scores, frontier.live)
        candidates = score(
            self.rows.head,
            hidden,
            selection,
            self.growth.width,
            self.log_mass,
            self.temperature,
            self.growth.needs_distribution,
        )
        return candidates, selection

    def _cluster_scores(
        self, hidden: Tensor, features: Tensor | None, frontier: Frontier
    ) -> Tensor:
        assert not isinstance(self.rows, PrefixRows)
        router = self.rows.router
        assert router is not None
        if not router.early:
            return router.late_scores(hidden)
        assert features is not None
        return router.early_scores(features, self.target.embed(frontier.tokens))

    def _selected(self, chosen: list[Selection]) -> Tensor:
        counts = torch.stack([selection.size for selection in chosen])
        if not self.reports:
            return counts
        return torch.cat([counts, *(selection.rows for selection in chosen)])


class _Rows(NamedTuple):
    """What the rows of the tree that a frontier extends look like: ``tokens`` int64 [w] and
    ``ancestors`` int64 [w] of the last frontier, ``depth`` int64 [t] of all rows so far."""

    tokens: Tensor
    ancestors: Tensor
    depth: Tensor

    @staticmethod
    def none(root: Tensor) -> _Rows:
        """Above the children of the root, whose row is a committed pair."""
        return _Rows(root, torch.zeros_like(root), root[:0])

    def below(self, frontier: Frontier, level: int, length: Tensor) -> tuple[Pass, _Rows]:
        """The pass over the nodes of draft step ``level``, and what comes under it."""
        n, start = frontier.tokens.shape[0], self.depth.shape[0]
        number = torch.arange(start, start + n, device=length.device)
        ancestors = self.ancestors[frontier.source] | (torch.ones_like(number) << number)
        own = torch.full_like(number, level - 1)
        depth = torch.cat([self.depth, own])
        rows = Pass(
            frontier.tokens,
            self.tokens[frontier.source],
            length + number,
            length,
            torch.cat([own, depth]),
            ancestors,
        )
        return rows, _Rows(frontier.tokens, ancestors, depth)
