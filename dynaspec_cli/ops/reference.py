"""Plain PyTorch references of every op: the tests' oracle, and what runs where no extension was
built.

Layout shared by all head ops. ``head`` [V, d] holds the LM head's rows in *cluster order*: a
cluster is a contiguous range of rows, ``cluster_offsets`` int32 [M+1] their borders. ``row_ids``
int32 [V] maps a row to its token id (an empty tensor: identity). A selection of rows is a list of
disjoint, ascending ``blocks`` int32 [b, 2] of half-open row ranges. ``head_scale`` float32 [V] is
the scale of each int8 row (empty for floating-point heads). With ``gather`` the head's rows stay in
their own order and row r of the shortlist is row ``row_ids[r]`` (int32 [R]) of it. ``format`` is a
packed form's number (``formats.py``), or -1 for heads that their dtype describes.

All reductions are in float32. A row's result does not depend on how many rows are passed with it
(the compiled kernels guarantee this bit for bit; the references only up to rounding).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dynaspec_cli.ops import reference_packed
from dynaspec_cli.ops.formats import DENSE
from dynaspec_cli.ops.layer import LayerWeights
from dynaspec_cli.ops.product import grouped_attention, own_dtype, product

_ROWS_AT_ONCE = 16384  # weight rows widened to float32 at a time: bounds the temporary copy


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric 8-bit rows: (int8 [n, k], scale float32 [n]) with ``scale = max |x| / 127``, ``q =
    round(x / scale)``, halves to even. A row of zeros has scale 0."""
    x = x.float()
    scale = x.abs().amax(-1) / 127.0 if x.shape[-1] else x.new_zeros(x.shape[:-1])
    q = torch.where(scale[:, None] > 0, x / scale[:, None], 0.0).round()
    return q.to(torch.int8), scale


def _int8_products(x: Tensor, weight: Tensor) -> Tensor:
    """The integer dot products of quantised rows, exact in float64, times the scale of x."""
    q, scale = quantize_rows(x)
    return (q.double() @ weight.double().t()).float() * scale[:, None]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, format: int = DENSE
) -> Tensor:
    """``x @ weight.T (* scale) (+ bias)``: x [n, k] float32/bf16/fp16, weight [m, k]
    float32/bf16/fp16/int8, scale float32 [m] for int8 weights. Returns float32 [n, m].

    A bf16 weight rounds ``x`` to bf16, an int8 weight quantises each row of ``x``
    (``quantize_rows``); otherwise ``x`` is float32. Products accumulate in float32, those of int8
    exactly. On CUDA a half weight is multiplied in its own dtype, so an fp16 one rounds ``x`` too.
    Packed rows (``format``, uint8 [m, row bytes]) multiply what
    ``reference_packed.activations`` makes of x.
    """
    if format != DENSE:
        y = reference_packed.products(x, weight, format)
        return y if bias is None else y + bias.float()
    if own_dtype(weight):
        y = product(x, weight)
        return y if bias is None else y + bias.float()
    if weight.dtype == torch.bfloat16:
        x = x.to(torch.bfloat16)
    if weight.dtype == torch.int8 and (scale is None or not scale.numel()):
        raise ValueError("linear: weight: int8 rows need their scale, got none")
    parts = []
    for lo in range(0, max(weight.shape[0], 1), _ROWS_AT_ONCE):
        rows = weight[lo : lo + _ROWS_AT_ONCE]
        products = (
            _int8_products(x, rows) if weight.dtype == torch.int8 else x.float() @ rows.float().t()
        )
        parts.append(products)
    y = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    if scale is not None and scale.numel():
        y = y * scale
    return y if bias is None else y + bias.float()


def shortlist_union(
    cluster_scores: Tensor,
    cluster_offsets: Tensor,
    extra_rows: Tensor,
    core_rows: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Rows to score: the core ``[0, core_rows)``, ``extra_rows`` int32 [r] (any order, duplicates
    allowed), then whole clusters by score until ``budget`` rows are reached.

    cluster_scores float32 [n, M] (n frontier rows; n = 0 or M = 0: no clusters). A cluster's score
    is its maximum over the rows; ties go to the lower cluster. A cluster whose rows not yet taken
    would exceed the budget ends the filling. Core and extras are always kept, also beyond the
    budget. Returns (blocks int32 [b, 2] ascending and disjoint, adjacent ranges merged; size int64
    scalar: rows in all).
    """
    total = int(cluster_offsets[-1]) if cluster_offsets.numel() else 0
    if extra_rows.numel():
        total = max(total, int(extra_rows.max()) + 1)
    taken = torch.zeros(max(total, core_rows), dtype=torch.bool)
    taken[:core_rows] = True
    taken[extra_rows.long().cpu()] = True
    size = int(taken.sum())
    if cluster_scores.numel():
        best = cluster_scores.amax(0).cpu()
        for c in torch.sort(best, descending=True, stable=True).indices.tolist():
            lo, hi = int(cluster_offsets[c]), int(cluster_offsets[c + 1])
            new = hi - lo - int(taken[lo:hi].sum())
            if size + new > budget:
                break
            taken[lo:hi] = True
            size += new
    edges = torch.diff(
        taken.to(torch.int8),
        prepend=torch.zeros(1, dtype=torch.int8),
        append=torch.zeros(1, dtype=torch.int8),
    )
    starts, ends = (edges == 1).nonzero().squeeze(1), (edges == -1).nonzero().squeeze(1)
    blocks = torch.stack([starts, ends], 1).to(torch.int32).to(cluster_offsets.device)
    return blocks, torch.tensor(size)


def _block_rows(blocks: Tensor) -> Tensor:
    lengths = (blocks[:, 1] - blocks[:, 0]).long()
    starts = blocks[:, 0].long() - (torch.cumsum(lengths, 0) - lengths)
    return torch.arange(int(lengths.sum()), device=blocks.device) + torch.repeat_interleave(
        starts, lengths
    )


def shortlist_log_probs(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    blocks: Tensor,
    temperature: float,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole distribution over the selection: (log_q float32 [n, S] normalised over it, ids int64
    [S], logsumexp float32 [n] of the tempered logits). ``hidden`` [n, d] is what the LM head reads.
    Ids are in row order."""
    rows = _block_rows(blocks)
    stored = row_ids[rows].long() if gather else rows
    scale = head_scale[stored] if head_scale.numel() else None
    logits = linear(hidden, head[stored], None, scale, format)
    logits = logits / temperature
    lse = torch.logsumexp(logits, -1)
    ids = row_ids[rows].long() if row_ids.numel() else rows
    return logits - lse[:, None], ids, lse


def shortlist_topk(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    blocks: Tensor,
    k: int,
    temperature: float,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best k of the selection: (log_q float32 [n, k'], ids int64 [n, k'], logsumexp float32
    [n]), best first, k' = min(k, rows selected); an exact tie of logits goes to the lower row. The
    compiled kernel never writes the [n, S] logits to memory."""
    log_q, ids, lse = shortlist_log_probs(
        hidden, head, head_scale, row_ids, blocks, temperature, format, gather
    )
    order = torch.sort(log_q, dim=-1, descending=True, stable=True).indices[:, :k]
    return log_q.gather(1, order), ids[order], lse


def router_clusters(
    features: Tensor, tokens_embedding: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """Router scores float32 [n, M]: ``w2 silu(w1 [f; e] + b1) + b2`` (MLP), or, with an empty
    ``w1``, centroid scores ``w2 f + b2``. features [n, d] and tokens_embedding [n, e] arrive
    already normalised."""
    if w1.numel() == 0:
        return linear(features, w2, b2 if b2.numel() else None, None)
    hidden = torch.cat([features.float(), tokens_embedding.float()], 1)
    hidden = torch.nn.functional.silu(linear(hidden, w1, b1 if b1.numel() else None, None))
    return linear(hidden, w2, b2 if b2.numel() else None, None)


class LayerShape(NamedTuple):
    """Constants of a pre-norm decoder layer (Gemma 2 and 3, Llama, Mistral, Qwen 2 and 3).
    ``window`` 0: full attention. ``activation``: "silu" or "gelu_tanh". ``softcap`` 0: none; else
    the attention's scores s become ``softcap tanh(s / softcap)`` (Gemma 2)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float
    window: int
    activation: str
    softcap: float = 0.0


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last axis in float32."""
    x = x.float()
    if x.device.type != "cpu":  # one kernel where there is one
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def drafter_input(
    features: Tensor, embedded: Tensor, norms: Tensor, fc: Tensor, gate: Tensor, eps: float
) -> Tensor:
    """The drafter's input: ``fc [norm_0(f); norm_1(e_1); ...] + gate * f``, float32 [n, d].

    features float32 [n, d]; embedded float32 [(p - 1) n, d]: the p - 1 token embeddings of every
    row, all first ones before all second ones; norms float32 [p, d]; fc float32, bf16 or fp16 [d,
    p d]; gate float32 [d].
    """
    n, d = features.shape
    rows = torch.cat([features[None], embedded.view(norms.shape[0] - 1, n, d)])
    x = torch.cat([rms_norm(row, norm, eps) for row, norm in zip(rows, norms, strict=True)], 1)
    return linear(x, fc, None, None) + gate * features


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def _attention(
    q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, softcap: float
) -> Tensor:
    """``grouped_attention`` with keys and values expanded: the plain form."""
    n, heads, size = q.shape
    group = heads // keys.shape[1]
    k, v = (cache.float().repeat_interleave(group, 1) for cache in (keys, values))
    scores = torch.einsum("nhd,thd->hnt", q.to(keys.dtype).float(), k) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen[None], float("-inf"))
    weight = torch.exp(scores - scores.amax(-1, keepdim=True)).to(values.dtype).float()
    attended = torch.einsum("hnt,thd->nhd", weight / weight.sum(-1, keepdim=True), v)
    return attended.reshape(n, heads * size)


def pre_norm_layer(
    x: Tensor,
    weights: LayerWeights,
    cos: Tensor,
    sin: Tensor,
    shape: LayerShape,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """A decoder layer around its attention: the residual stream float32 [n, d] after it.

    ``attend`` takes queries [n, heads, head_dim], keys and values [n, kv_heads, head_dim] of these
    rows, q and k normed and rotated, and yields float32 [n, heads * head_dim]. The rest as in
    ``decoder_layer``.
    """
    w, formats = weights._asdict(), iter(weights.formats)
    num_heads, num_kv_heads, head_dim, eps = shape[:4]

    def apply(x: Tensor, *parts: Tensor) -> Tensor:
        found = [linear(x, part, None, None, next(formats)) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    n = x.shape[0]
    qkv = apply(rms_norm(x, w["input_norm"], eps), *w["qkv"])
    if w["qkv_bias"].numel():
        qkv = qkv + w["qkv_bias"].float()
    heads = qkv.view(n, num_heads + 2 * num_kv_heads, head_dim)
    turning, v = heads.split([num_heads + num_kv_heads, num_kv_heads], 1)
    if w["q_norm"].numel():
        q, k = turning.split([num_heads, num_kv_heads], 1)
        turning = torch.cat([rms_norm(q, w["q_norm"], eps), rms_norm(k, w["k_norm"], eps)], 1)
    turned = _rotate(turning, cos[:, None], sin[:, None])
    q, k = turned.split([num_heads, num_kv_heads], 1)
    o = apply(attend(q, k, v), w["out"])
    if w["post_attention_norm"].numel():
        o = rms_norm(o, w["post_attention_norm"], eps)
    x = x + o
    gate, up = apply(rms_norm(x, w["mlp_norm"], eps), *w["gate_up"]).chunk(2, -1)
    if shape.activation == "silu":
        gate = torch.nn.functional.silu(gate)
    else:
        gate = torch.nn.functional.gelu(gate, approximate="tanh")
    m = apply(gate * up, w["down"])
    if w["post_mlp_norm"].numel():
        m = rms_norm(m, w["post_mlp_norm"], eps)
    return x + m


def decoder_layer(
    x: Tensor,
    weights: LayerWeights,
    k_cache: Tensor,
    v_cache: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    mask: Tensor,
    cache_len: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
    window: int,
    activation: str,
    softcap: float = 0.0,
) -> Tensor:
    """One decoder layer over n rows, writing their keys and values to the cache.

    x float32 [n, d] (residual stream); k_cache, v_cache [T, kv_heads, head_dim] (float32 or bf16;
    keys stored *after* rotation); cos, sin float32 [n, head_dim].

    The cache holds ``cache_len`` committed rows (row j has position j), then the t rows of a
    tree, of which the last n are this pass's: they are written to cache rows ``cache_len + t - n
    .. cache_len + t``; the t - n before them were written by earlier passes (an EAGLE drafter's
    earlier frontiers; t = n for a target). positions int64 [t]; mask bool [n, t]: may row i of
    the pass attend to tree row j (an ancestor, or itself). All committed rows are attended to as
    well; with ``window`` > 0 only keys with ``position of row - position of key < window``, in
    the tree too. With ``softcap`` > 0 the scaled scores s become ``softcap tanh(s / softcap)``.

    Rounding: the inputs of a bf16 linear are rounded to bf16; with a bf16 cache so are the
    rotated queries and the softmax numerators (whose denominator is the sum of the rounded ones).
    All else is float32. The compiled kernel adds up keys in the order of their positions,
    wherever they are stored, so a row has the same bits in a tree as in plain decoding. Returns
    float32 [n, d].
    """
    end = cache_len + positions.shape[0]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[0]
        k_cache[end - n : end] = k.to(k_cache.dtype)
        v_cache[end - n : end] = v.to(v_cache.dtype)
        key_positions = torch.cat([torch.arange(cache_len, device=x.device), positions])
        allowed = torch.cat([torch.ones(n, cache_len, dtype=torch.bool, device=x.device), mask], 1)
        if window > 0:
            allowed = allowed & (key_positions[end - n :, None] - key_positions[None, :] < window)
        attention = _attention if x.device.type == "cpu" else grouped_attention
        return attention(q, k_cache[:end], v_cache[:end], allowed, scale, softcap)

    shape = LayerShape(num_heads, num_kv_heads, head_dim, eps, scale, window, activation, softcap)
    return pre_norm_layer(x, weights, cos, sin, shape, attend)
