"""Settings of the drafter's loss. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

VARIATION = {"cross-entropy": 0.0, "blend": 0.5, "total-variation": 1.0}
"""``--loss``: the share of total variation. A drawn token is accepted with probability sum min(p,
q) = 1 - TV(p, q), which cross-entropy only bounds (Pinsker); but where q is far from p, the
gradient of TV is small."""


@dataclass(frozen=True)
class LossConfig:
    """``columns``: most frequent tokens in the softmax, beside the batch's own. ``gram``: weight of
    the logit-space term. ``prompt_weight``: weight of positions inside a prompt (text that the
    target did not write). ``variation``: share of total variation, in [0, 1]; cross-entropy and the
    logit-space term, which is its second order, have the rest."""

    columns: int = 6144
    gram: float = 0.5
    prompt_weight: float = 0.0
    variation: float = 0.0
