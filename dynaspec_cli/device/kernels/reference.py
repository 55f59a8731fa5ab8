"""Plain PyTorch references of the kernels: the tests' oracle, and what runs without Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.ops.product import grouped_attention

SPLITS = 16
"""Parts that keys are split into, unless a caller knows better."""


def head_topk(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    count: Tensor,
    k: int,
    temperature: float,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The best ``k`` of a list of head rows: hidden [w, d]; weight [V, d]; rows int64 [S], of which
    the first ``count`` int64 [] count; ``scale`` float32 [V] of int8 rows.

    Returns (log_q float32 [w, k], the log-softmax over the list of the logits over ``temperature``;
    place int64 [w, k] in the list), best first, a tie to the lower place; -inf and -1 where the
    list has fewer. A NaN logit makes the whole row NaN.
    """
    from dynaspec_cli.ops import linear

    at = rows.clamp(min=0)
    factors = scale[at] if scale is not None and scale.numel() else None
    logits = linear(hidden, weight[at], None, factors) / temperature
    real = torch.arange(rows.shape[0], device=rows.device) < count
    logits = logits.where(real, -torch.inf)
    if rows.shape[0] < k:
        logits = torch.nn.functional.pad(logits, (0, k - rows.shape[0]), value=-torch.inf)
    lse = logits.logsumexp(1, keepdim=True)
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :k]
    log_q = logits.gather(1, order) - lse
    return log_q, order.where(log_q != -torch.inf, -1)


def tree_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    depth: Tensor,
    ancestors: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    splits: int = SPLITS,
) -> Tensor:
    """Attention of rows of a tree: q [n, heads, head_dim]; keys and values [T, kv_heads, head_dim]:
    ``length`` int64 [1] committed rows, which all are seen, then the t <= 64 rows of the tree, n of
    them these queries, at any place.

    ``ancestors`` int64 [n]: bit j says that tree row j is seen. ``depth`` int64 [n + t]: of the
    queries, then of the tree's rows: position less ``length``. With ``window`` > 0 only keys fewer
    than so many positions before are seen. ``splits``: parts of the keys that are read side by
    side, a power of two, of which the result depends by rounding alone. Returns float32 [n, heads *
    head_dim].
    """
    n, total = q.shape[0], keys.shape[0]
    own, below = depth[:n], depth[n:]
    slot = torch.arange(total, device=q.device)
    row = slot - length
    inside = (row >= 0) & (row < below.shape[0])
    row = row.clamp(0, below.shape[0] - 1)
    drafted = (ancestors[:, None] >> row[None, :]) & 1 == 1
    seen = (slot < length) | (drafted & inside)
    if window > 0:
        position = torch.where(inside, length + below[row], slot)
        seen = seen & ((length + own)[:, None] - position < window)
    return grouped_attention(q, keys, values, seen, scale, softcap)
