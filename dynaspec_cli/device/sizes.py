"""Device memory that draft rounds take, for the estimate before a model is loaded."""

from __future__ import annotations

from dynaspec_cli.target.static.sizes import GRAPH_LAUNCH_BYTES

ROUND_LAUNCHES = 1400
"""Launches of a greedy round of depth 6, with some to spare (docs/internals/cuda.md)."""

CAPTURED_ROUNDS = 2
"""With and without a router."""

TOKEN_BYTES = 640
"""What a round holds at once for each token of the vocabulary: the laws of 51 frontier rows, and
what chooses and sorts rows of the head."""

COPIED_ROWS = 8192
"""Rows of the head that a draft step which samples gathers."""


def round_bytes(hidden: int, vocab: int, item: int) -> int:
    """Of a drafter's captured rounds; ``item``: bytes of a number of the head."""
    graphs = CAPTURED_ROUNDS * ROUND_LAUNCHES * GRAPH_LAUNCH_BYTES
    return graphs + vocab * TOKEN_BYTES + min(COPIED_ROWS, vocab) * hidden * item
