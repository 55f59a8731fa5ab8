"""Sizes of what the static target holds: rows and context of its graphs, memory of its caches."""

from __future__ import annotations

LEAST_ROWS = 16
"""Rows of the smallest pass. Plain decoding is padded to it, so that its matrix products have the
shapes of a small tree's."""

LEAST_CONTEXT = 1024
CAPTURED_ROWS = (16, 32, 64)
"""Passes whose graphs are captured at load; others when they are first used."""

DECIDED_ROWS = 64
"""Rows of the largest tree whose drafts are tried on the device at a temperature above 0: the walk
holds the distributions of all rows."""

MOST_ROWS = 1088
"""Rows of the largest pass (``config.MOST_NODES`` and a root, padded)."""

SCRATCH_ROWS = 64
"""Rows at the caches' end that padding writes to and nothing reads."""

ALLOTTED = 256
"""Cache rows are allotted in multiples of so many."""

SPLIT_FROM = 4096
"""Cache rows from which on attention splits the keys and writes no scores: below, one product of
all keys is short, and the library's."""

KEYS_A_SPLIT = 512
MOST_SPLITS = 32

RANKED = 4
"""Best tokens of each row that come to the host with the result."""

GRAPH_LAUNCH_BYTES = 12 << 10
"""What a captured launch takes, parameters and node: an estimate, not measured on a GPU."""

LAYER_LAUNCHES = 40
"""Launches of a layer and its share of the rest (docs/internals/cuda.md)."""


def rows_of(count: int) -> int:
    """Rows of the pass that ``count`` rows are padded to: 16, 32, then multiples of 64."""
    return max(LEAST_ROWS, 1 << (count - 1).bit_length()) if count <= 64 else -(-count // 64) * 64


def context_of(length: int, capacity: int) -> int:
    """Cache rows that a pass reads whose keys end at ``length``: a power of two, or all."""
    return min(capacity, max(LEAST_CONTEXT, 1 << (length - 1).bit_length()))


def splits_of(rows: int, context: int) -> int:
    """Parts that attention splits the keys of a pass into, a power of two; 0: it does not. It holds
    ancestors in 64 bits."""
    if context < SPLIT_FROM or rows > 64:
        return 0
    return min(MOST_SPLITS, 1 << max(1, context // KEYS_A_SPLIT).bit_length() - 1)


def capacity_of(max_length: int) -> int:
    """Cache rows for a request of ``max_length`` tokens and a tree behind them, scratch rows not
    counted."""
    return -(-(max_length + CAPTURED_ROWS[-1]) // ALLOTTED) * ALLOTTED


LOGIT_BYTES = 64
"""What a pass of the largest tree that is walked on the device holds at once for each of its
logits: at a temperature their distribution, what filters sort, and what a walk leaves of it."""


def extra_bytes(layers: int, hidden: int, kv_width: int, vocab: int, item: int) -> int:
    """Device memory beside weights and the rows of a request's cache: scratch rows, activations of
    the largest captured pass (those of its logits are several times the rest), and its graphs.
    ``kv_width``: numbers that a token adds to all caches; ``item``: bytes of one."""
    rows = CAPTURED_ROWS[-1]
    scratch = SCRATCH_ROWS * kv_width * item + 2 * MOST_ROWS * hidden * 4
    activations = rows * vocab * LOGIT_BYTES + 16 * rows * hidden * 4
    graphs = len(CAPTURED_ROWS) * layers * LAYER_LAUNCHES * GRAPH_LAUNCH_BYTES
    return scratch + activations + graphs
