"""What the policies that *sample* children share: draws from the shortlist's distribution, and
their record for verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError, bad_score
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
    that they remove from p is never accepted. ``config`` has a temperature above 0. ``traversal``: how
    the drawn trees are to be verified (``SampledDrafts``)."""

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
        if bool(mass.isnan().any()):
            raise bad_score()
        drawn = (columns >= 0).sum(1).tolist()

        def cut(rows: Tensor) -> list[list[Any]]:
            return [row[:n] for row, n in zip(rows.tolist(), drawn, strict=True)]

        return Drawn(law.ids, q, cut(columns), cut(tokens))


@dataclass
class Drawn:
    """Draws of one frontier: ``ids`` int64 [S]; ``q`` [w, S]; per row the drawn ``columns`` and
    their ``tokens``."""

    ids: Tensor
    q: Tensor
    columns: list[list[int]]
    tokens: list[list[int]]


@dataclass
class SampledTree(GrowingTree):
    """A growing tree whose children were drawn: per expanded node its level's draws, its row there,
    and (column, node) of each draw, in draw order. ``drawn``: draws so far."""

    drafts: dict[int, tuple[Drawn, int, list[tuple[int, int]]]] = field(default_factory=dict)
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
        records = {}
        for node, (drawn, i, pairs) in self.drafts.items():
            draws = tuple(Draw(column, place[child]) for column, child in pairs if child in place)
            if node in place and draws:
                records[place[node]] = NodeDraft(drawn.ids, drawn.q[i], draws)
        distinct = len(self.tokens) - 1
        drafts = SampledDrafts(records, replacement, self.drawn, distinct, traversal)
        return self.tree(nodes, drafts)
