"""The LM heads that drafters score with."""

from __future__ import annotations

import torch

from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.protocols import DrafterHead, Target
from dynaspec_cli.weights.weight import Weight


def target_head(target: Target) -> DrafterHead:
    """The target's own head, for a drafter that predicts the target's hidden rows."""
    return DrafterHead(target.head_weight(), None, target.vocab_size, own=False)


def own_head(weight: Weight, vocab: VocabMap | None, vocab_size: int) -> DrafterHead:
    """A head [R, d] of the drafter's own. ``vocab`` None: row i is token i, and rows beyond the
    target's ``vocab_size`` tokens are cut off; a head of fewer rows proposes the tokens it has."""
    weight = weight.take(slice(vocab_size))
    if vocab is None and weight.rows < vocab_size:
        vocab = VocabMap.from_absolute(torch.arange(weight.rows), vocab_size, "drafter's head")
    return DrafterHead(weight, vocab, vocab_size, own=True)
