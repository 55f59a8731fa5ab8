"""What the policies that *sample* children share: draws from the shortlist's distribution, and
their record for verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import RandomSource
from dynaspec_cli.sampling.verify import Draw, NodeDraft, SampledDrafts
from dynaspec_cli.tree.base import ROOT, GrowingTree


@dataclass
class Drawn:
    """Draws of one frontier: ``ids`` int64 [S]; ``q`` [w, S]; per row the drawn ``columns``, their
    ``tokens`` and probabilities ``chances``; ``mass`` the estimated target mass of the shortlist
    per row."""

    ids: Tensor
    q: Tensor
    columns: list[list[int]]
    tokens: list[list[int]]
    chances: list[list[float]]
    mass: list[float]


@dataclass
class SampledTree(GrowingTree):
    """A growing tree whose children were drawn: per expanded node its level's draws, its row there,
    and (column, node) of each draw that is a candidate, in draw order. ``shared``: some level's
    candidates were (``DraftHeadOutput.shared``)."""

    drafts: dict[int, tuple[Drawn, int, list[tuple[int, int]]]] = field(default_factory=dict)
    shared: bool = False

    def record(self, parent: int, drawn: Drawn, row: int, pairs: list[tuple[int, int]]) -> None:
        """The (column, node) ``pairs`` below ``parent`` were drawn in this order from row ``row``
        of ``drawn``."""
        self.drafts[parent] = (drawn, row, pairs)

    def offer_level(self, slots: list[tuple[float, int]], size: int) -> None:
        """Let a level's (-priority, node) slots compete for the best ``size``.

        Where a level's distributions show what was drawn on other branches, its priorities do too,
        and a token drawn earlier could decide whether its own slot is displaced. Then slots
        compete within their level, for the room that the levels above have left.
        """
        if self.shared:
            self.best.extend(sorted(slots)[: size - len(self.best)])
            self.best.sort()
        else:
            self.offer(slots, size)

    def finished(self, nodes: Sequence[int], replacement: bool) -> DraftTree:
        """The tree of ``nodes`` (ascending) with the distributions that verification needs."""
        place = {node: row for row, node in enumerate([ROOT, *nodes])}
        records = {}
        for node, (drawn, i, pairs) in self.drafts.items():
            draws = tuple(Draw(column, place[child]) for column, child in pairs if child in place)
            if node in place and draws:
                records[place[node]] = NodeDraft(drawn.ids, drawn.q[i], draws)
        return self.tree(nodes, SampledDrafts(records, replacement))


class Drawing:
    """Draws children at a ``SamplingConfig`` of the draft: the target's own filters, since a token
    that they remove from p is never accepted. ``config`` has a temperature above 0."""

    def __init__(self, config: SamplingConfig, source: RandomSource) -> None:
        self.config, self.source = config, source

    def draw(
        self,
        candidates: DraftHeadOutput,
        counts: Sequence[int],
        replacement: bool,
        least: Sequence[float] | None = None,
    ) -> Drawn:
        """``counts[i]`` draws for frontier row i, fewer where the support of q is smaller, or where
        less than ``least[i]`` of the row's estimated probability is left."""
        if candidates.log_probs is None or candidates.all_ids is None:
            raise DynaSpecError(
                "this tree policy samples its children and needs the shortlist's whole "
                "distribution; the candidates hold only the best"
            )
        # Draws are decided on the host: what they need comes there once.
        log_probs, ids = candidates.log_probs.cpu(), candidates.all_ids.cpu()
        q = probabilities(log_probs, self.config, "the drafter's scores")
        # log_q is log_probs plus the log of the mass, so their maxima differ by it.
        best = candidates.log_q[:, 0].cpu()
        mass = (best - log_probs.amax(1)).exp().clamp(max=1.0).tolist()
        enough = None
        if least is not None:
            enough = [(1.0 - rest) / m if m else 1.0 for rest, m in zip(least, mass, strict=True)]
        columns = self.source.draws(q, counts, replacement, enough)
        flat = [(i, c) for i, row in enumerate(columns) for c in row]
        rows = [i for i, _ in flat]
        picked = [c for _, c in flat]
        tokens: list[list[int]] = [[] for _ in columns]
        chances: list[list[float]] = [[] for _ in columns]
        for i, token, chance in zip(
            rows, ids[picked].tolist(), q[rows, picked].tolist(), strict=True
        ):
            tokens[i].append(token)
            chances[i].append(chance)
        return Drawn(ids, q, columns, tokens, chances, mass)
