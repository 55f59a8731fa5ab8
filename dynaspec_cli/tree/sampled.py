"""What the policies that *sample* children share: draws from the shortlist's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftHeadOutput
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import RandomSource


class Law(NamedTuple):
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
        self.filters = (config.temperature, config.top_k, config.top_p, config.min_p)

    def law(self, candidates: DraftHeadOutput) -> Law:
        """Raises DynaSpecError where the candidates hold only the best tokens."""
        if candidates.log_probs is None or candidates.all_ids is None:
            raise DynaSpecError(
                "this tree policy samples its children and needs the shortlist's whole "
                "distribution; the candidates hold only the best"
            )
        log_probs, log_q, ids = candidates.log_probs, candidates.log_q, candidates.all_ids
        if not log_probs.is_cpu:
            log_probs, log_q, ids = log_probs.cpu(), log_q.cpu(), ids.cpu()
        return Law(log_probs, log_q, ids, self.config)
