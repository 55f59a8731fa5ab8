"""What the policies that *sample* children share: draws from the shortlist's distribution, and
their record for verification."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.ops.draw import draw_children
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import RandomSource
from dynaspec_cli.sampling.verify import Draw, NodeDraft, SampledDrafts
from dynaspec_cli.tree.base import ROOT, GrowingTree


@dataclass(frozen=True)
class Law:
    """A level's scores, on the host, where a seed gives the same numbers on every device:
    ``log_probs`` [w, S] over ``ids`` int64 [S], ``log_q`` [w, k] with the shortlist's mass."""

    log_probs: Tensor
    log_q: Tensor
    ids: Tensor
    config: SamplingConfig

    def uniforms(self, source: RandomSource, counts: Sequence[int], replacement: bool) -> Tensor:
        """What decides the draws; a source that must know their law is told it."""

        def law() -> Tensor:
            return probabilities(self.log_probs, self.config, "the drafter's scores")

        return source.uniforms(law, counts, replacement)


class Drawing:
    """Draws children at a ``SamplingConfig`` of the draft: the target's own filters, since a token
    that they remove from p is never accepted. ``config`` has a temperature above 0.
    ``traversal``: how the drawn trees are to be verified (``SampledDrafts``)."""

    def __init__(
        self, config: SamplingConfig, source: RandomSource, traversal: bool = False
    ) -> None:
        self.config, self.source, self.traversal = config, source, traversal

    def law(self, candidates: DraftHeadOutput) -> Law:
        """Raises DynaSpecError where the candidates hold only the best tokens."""
        if candidates.log_probs is None or candidates.all_ids is None:
            raise DynaSpecError(
                "this tree policy samples its children and needs the shortlist's whole "
                "distribution; the candidates hold only the best"
            )
        scores = (candidates.log_probs.cpu(), candidates.log_q.cpu(), candidates.all_ids.cpu())
        return Law(*scores, self.config)

    def draw(self, candidates: DraftHeadOutput, counts: Sequence[int], replacement: bool) -> Drawn:
        """``counts[i]`` draws for frontier row i, fewer where the support of q is smaller."""
        law, c = self.law(candidates), self.config
        q, columns, tokens, _, mass = draw_children(
            law.log_probs,
            law.log_q[:, 0],
            law.ids,
            law.uniforms(self.source, counts, replacement),
            counts,
            [0.0] * len(counts),
            c.temperature,
            c.top_k,
            c.top_p,
            c.min_p,
            replacement,
        )
        if any(map(math.isnan, mass.tolist())):
            raise NotFiniteError.of_drafter()
        return Drawn(law.ids, q, _drawn(columns), _drawn(tokens))


def _drawn(rows: Tensor) -> list[list[int]]:
    """Each row up to its first -1."""
    return [row if row[-1] >= 0 else row[: row.index(-1)] for row in rows.tolist()]


@dataclass
class Drawn:
    """Draws of one frontier: ``ids`` int64 [S]; ``q`` [w, S]; per row the drawn ``columns`` and
    their ``tokens``."""

    ids: Tensor
    q: Tensor
    columns: list[list[int]]
    tokens: list[list[int]]


Record = tuple[Drawn, int, list[tuple[int, int]]]
"""Draws of a level, the row of a node there, and (column, child) of its draws in their order."""


@dataclass
class SampledTree(GrowingTree):
    """A growing tree whose children were drawn: a record per expanded node. ``drawn``: draws so
    far."""

    drafts: dict[int, Record] = field(default_factory=dict)
    drawn: int = 0

    def record(self, parent: int, drawn: Drawn, row: int, pairs: list[tuple[int, int]]) -> None:
        """The (column, node) ``pairs`` below ``parent`` were drawn in this order from row ``row``
        of ``drawn``."""
        self.drafts[parent] = (drawn, row, pairs)
        self.drawn += len(pairs)

    def finished(
        self, nodes: Sequence[int], replacement: bool, traversal: bool = False
    ) -> DraftTree:
        """The tree of ``nodes`` (ascending) with the distributions that verification needs."""
        place = {node: row for row, node in enumerate([ROOT, *nodes])}
        expanded = {place[node]: record for node, record in self.drafts.items() if node in place}
        drafts = SampledDrafts(
            RecordedDrafts(expanded, place),
            replacement,
            self.drawn,
            len(self.tokens) - 1,
            traversal,
        )
        return self.tree(nodes, drafts)


class RecordedDrafts(Mapping[int, NodeDraft]):
    """The draft of every row that has children, made when asked for: a walk visits few rows.
    ``expanded``: the records of rows, ``place``: the row of each node that is kept."""

    def __init__(self, expanded: dict[int, Record], place: dict[int, int]) -> None:
        self._expanded = {
            row: record
            for row, record in expanded.items()
            if any(child in place for _, child in record[2])
        }
        self._place = place

    def __getitem__(self, row: int) -> NodeDraft:
        drawn, i, pairs = self._expanded[row]
        kept = ((column, self._place.get(child)) for column, child in pairs)
        draws = tuple(Draw(column, below) for column, below in kept if below is not None)
        return NodeDraft(drawn.ids, drawn.q[i], draws)

    def __iter__(self) -> Iterator[int]:
        return iter(self._expanded)

    def __len__(self) -> int:
        return len(self._expanded)
