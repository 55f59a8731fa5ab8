"""What the parts of a draft round hand to each other, in fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Candidates(NamedTuple):
    """Scores of the children of w frontier nodes; ``DraftHeadOutput``, padded.

    ``log_q`` float32 [w, k] and ``ids`` int64 [w, k], best first; id -1 is padding. Where children
    are drawn: ``log_probs`` float32 [w, S] over the tokens ``all_ids`` int64 [S]; its last columns
    may be padding, log-probability -inf and id -1.
    """

    log_q: Tensor
    ids: Tensor
    log_probs: Tensor | None = None
    all_ids: Tensor | None = None


class Frontier(NamedTuple):
    """Nodes to expand next, int64 [w]: their ``tokens`` and the row of the last frontier that each
    was proposed by (``source``). ``live`` bool [w]; rows that are not live hold token 0 below row
    0, and come behind the live ones."""

    tokens: Tensor
    source: Tensor
    live: Tensor


class Law(NamedTuple):
    """What the children of a frontier were drawn from: ``q`` float32 [w, S] over ``ids`` int64
    [S]."""

    ids: Tensor
    q: Tensor
