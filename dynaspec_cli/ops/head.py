"""Dense ops: a weight applied to few rows, the shortlisted LM head, the router.

Shapes, dtypes and meaning of every op stand in ``reference.py``. The compiled ops check their
arguments themselves; the fallback checks here, with the same messages (``ValueError``;
``NotFiniteLogits`` where the logits of a head are no numbers).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.ops import checks, reference, reference_packed
from dynaspec_cli.ops.extension import EXTENSION, compiled
from dynaspec_cli.ops.failures import TYPED
from dynaspec_cli.ops.formats import DENSE

_ops = torch.ops.dynaspec


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, format: int = DENSE
) -> Tensor:
    """``x @ weight.T (* scale) (+ bias)``, float32 [n, m]; see ``reference.linear``."""
    if weight.device.type == "cpu" and compiled(weight):
        return _ops.linear(x, weight, bias, scale, format)
    checks.check_linear("linear", x, weight, bias, scale, format)
    return reference.linear(x, weight, bias, scale, format)


def embed_rows(weight: Tensor, ids: Tensor, format: int, columns: int) -> Tensor:
    """Rows ``ids`` int64 [n] of packed rows, float32 [n, columns]."""
    if compiled(weight):
        return _ops.embed_rows(weight, ids, format, columns)
    checks.check_weight("embed_rows", "weight", weight, None, format, columns)
    return reference_packed.embed_rows(weight, ids, format, columns)


def pack_blocks(blocks: Tensor, format: int, columns: int, out: Tensor) -> None:
    """A GGUF file's blocks uint8 [m, row bytes] -> the same bytes in the kernels' order, in ``out``
    (memory of its own). Raises ``ValueError`` for a scale that is NaN or infinite."""
    if EXTENSION.module is None:
        raise ValueError(f"pack_blocks: only the compiled extension packs: {EXTENSION.reason}")
    _ops.pack_blocks(blocks, format, columns, out)


def shortlist_union(
    cluster_scores: Tensor,
    cluster_offsets: Tensor,
    extra_rows: Tensor,
    core_rows: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """(blocks int32 [b, 2], size int64 scalar); see ``reference.shortlist_union``."""
    if compiled(cluster_offsets):
        return _ops.shortlist_union(cluster_scores, cluster_offsets, extra_rows, core_rows, budget)
    args = (cluster_scores, cluster_offsets, extra_rows, core_rows, budget)
    checks.check_union("shortlist_union", *args)
    return reference.shortlist_union(*args)


def shortlist_topk(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    blocks: Tensor,
    k: int,
    temperature: float = 1.0,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log_q float32 [n, k'], ids int64 [n, k'], logsumexp float32 [n]), k' = min(k, rows
    selected); see ``reference.shortlist_topk``. One block [0, V) and empty ``row_ids`` give the
    top-k of the whole vocabulary."""
    if compiled(head):
        with TYPED:
            return _ops.shortlist_topk(
                hidden, head, head_scale, row_ids, blocks, k, temperature, format, gather
            )
    op = "shortlist_topk"
    checks.check_head(op, hidden, head, head_scale, row_ids, temperature, format, gather)
    checks.check_blocks(op, blocks, (row_ids if gather else head).shape[0])
    checks.expect(k >= 1, op, "k", "at least 1", k)
    log_q, ids, lse = reference.shortlist_topk(
        hidden, head, head_scale, row_ids, blocks, k, temperature, format, gather
    )
    checks.check_finite(op, lse)
    return log_q, ids, lse


def shortlist_log_probs(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    blocks: Tensor,
    temperature: float = 1.0,
    size: int | None = None,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log_q float32 [n, S], ids int64 [S], logsumexp float32 [n]); see
    ``reference.shortlist_log_probs``. ``size``: S where the caller knows it, which saves CUDA a
    wait for the sum over the blocks."""
    if compiled(head):
        if head.is_cuda and size is not None:
            return _ops.shortlist_log_probs_padded(
                hidden, head, head_scale, row_ids, blocks, size, temperature
            )
        with TYPED:
            return _ops.shortlist_log_probs(
                hidden, head, head_scale, row_ids, blocks, temperature, format, gather
            )
    op = "shortlist_log_probs"
    checks.check_head(op, hidden, head, head_scale, row_ids, temperature, format, gather)
    checks.check_blocks(op, blocks, (row_ids if gather else head).shape[0])
    log_q, ids, lse = reference.shortlist_log_probs(
        hidden, head, head_scale, row_ids, blocks, temperature, format, gather
    )
    checks.check_finite(op, lse)
    return log_q, ids, lse


def draft_head(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    cluster_scores: Tensor,
    cluster_offsets: Tensor,
    extra_rows: Tensor,
    core_rows: int,
    budget: int,
    k: int,
    temperature: float = 1.0,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The draft step in one call: ``shortlist_union`` of the scores, then ``shortlist_topk`` of
    ``hidden`` [n, d] over it.

    Returns (log_q float32 [n, k'], ids int64 [n, k'], logsumexp float32 [n], size int64 scalar,
    blocks int32 [b, 2]).
    """
    if compiled(head):
        with TYPED:
            return _ops.draft_head(
                hidden, head, head_scale, row_ids, cluster_scores, cluster_offsets, extra_rows,
                core_rows, budget, k, temperature, format, gather,
            )  # fmt: skip
    blocks, size = shortlist_union(cluster_scores, cluster_offsets, extra_rows, core_rows, budget)
    log_q, ids, lse = shortlist_topk(
        hidden, head, head_scale, row_ids, blocks, k, temperature, format, gather
    )
    return log_q, ids, lse, size, blocks


def router_clusters(
    features: Tensor, tokens_embedding: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """Router scores float32 [n, M]; see ``reference.router_clusters``."""
    if w2.device.type == "cpu" and compiled(w2):
        return _ops.router_clusters(features, tokens_embedding, w1, b1, w2, b2)
    checks.check_router(features, tokens_embedding, w1, b1, w2, b2)
    return reference.router_clusters(features, tokens_embedding, w1, b1, w2, b2)
