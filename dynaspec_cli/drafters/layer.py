"""A drafter's decoder layer whose attention may read other rows than the residual stream.

EAGLE-1's first layer has no norm before its attention, EAGLE-3's reads [token; state], twice the
width, and heads of other trainers have biases: what ``ops.decoder_layer`` has no form for. Matrices
are multiplied by the same kernels; attention is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from dynaspec_cli import ops
from dynaspec_cli.drafters.pairs import Rows
from dynaspec_cli.ops.pages import on_huge_pages
from dynaspec_cli.ops.reference import LayerShape


@dataclass(frozen=True)
class DraftLayer:
    """Norms and biases float32, or None where the layer has none; matrices in the model's dtype.
    ``qkv`` [(heads + 2 kv_heads) * head_dim, w]: q, k, v stacked; w the width of what attention
    reads. ``out`` [D, heads * head_dim]; ``gate_up`` [2 f, D]; ``down`` [D, f]. ``input_norm`` [D]:
    of the residual stream, where attention reads that."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    mlp_norm: Tensor
    input_norm: Tensor | None = None
    qkv_bias: Tensor | None = None
    out_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def placed(self, dtype: torch.dtype, device: torch.device) -> DraftLayer:
        """In the model's dtype on its device; on a CPU the matrices lie on huge pages."""
        names = ("qkv", "out", "gate_up", "down")
        matrices = [getattr(self, name).to(device, dtype).contiguous() for name in names]
        if device.type == "cpu":
            matrices = on_huge_pages(matrices)
        small = {
            name: value.to(device).float()
            for name in self.__dataclass_fields__
            if name not in names and (value := getattr(self, name)) is not None
        }
        return DraftLayer(**dict(zip(names, matrices, strict=True)), **small)

    @property
    def num_bytes(self) -> int:
        """Of the matrices."""
        return self.qkv.nbytes + self.out.nbytes + self.gate_up.nbytes + self.down.nbytes


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [n, heads, head_dim], keys and values [n, kv_heads, head_dim] of a pass, rotated ->
float32 [n, heads * head_dim]."""


def run_layer(
    x: Tensor,
    read: Tensor | None,
    weights: DraftLayer,
    k_cache: Tensor,
    v_cache: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Rows,
    shape: LayerShape,
) -> Tensor:
    """``layer_around`` with attention over a cache: keys and values go to its rows behind
    ``rows.committed``, as ``ops.decoder_layer`` puts them."""
    end = rows.committed + rows.positions.numel()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_cache[end - q.shape[0] : end] = k
        v_cache[end - q.shape[0] : end] = v
        return _attend(q.to(k_cache.dtype), k_cache[:end], v_cache[:end], rows, shape)

    return layer_around(x, read, weights, cos, sin, shape, attend)


def layer_around(
    x: Tensor,
    read: Tensor | None,
    weights: DraftLayer,
    cos: Tensor,
    sin: Tensor,
    shape: LayerShape,
    attend: Attend,
) -> Tensor:
    """The residual stream float32 [n, D] after the layer, from ``x`` float32 [n, D] before it.

    ``read`` float32 [n, w]: what attention reads; None: ``x`` under its input norm. ``cos`` and
    ``sin`` float32 [n, head_dim].
    """
    if read is None:
        assert weights.input_norm is not None
        read = ops.rms_norm(x, weights.input_norm, shape.eps)
    n, heads, kv_heads, head_dim = x.shape[0], shape.num_heads, shape.num_kv_heads, shape.head_dim
    qkv = ops.linear(read, weights.qkv, weights.qkv_bias, None)
    q, k, v = qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], 1)
    q, k = _turned(q, weights.q_norm, cos, sin, shape), _turned(k, weights.k_norm, cos, sin, shape)
    attended = attend(q, k, v.reshape(n, kv_heads, head_dim))
    x = x + ops.linear(attended, weights.out, weights.out_bias, None)
    inner = ops.linear(ops.rms_norm(x, weights.mlp_norm, shape.eps), weights.gate_up, None, None)
    gate, up = inner.chunk(2, 1)
    gate = silu(gate) if shape.activation == "silu" else gelu(gate, approximate="tanh")
    return x + ops.linear(gate * up, weights.down, None, None)


def _turned(x: Tensor, norm: Tensor | None, cos: Tensor, sin: Tensor, shape: LayerShape) -> Tensor:
    """Heads [n, h, head_dim] of x [n, h * head_dim], normed where there is a norm, and rotated."""
    x = x.reshape(-1, shape.head_dim)
    if norm is not None:
        x = ops.rms_norm(x, norm, shape.eps)
    x = x.view(cos.shape[0], -1, shape.head_dim)
    half = shape.head_dim // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos[:, None] + turned * sin[:, None]


def _attend(q: Tensor, keys: Tensor, values: Tensor, rows: Rows, shape: LayerShape) -> Tensor:
    """Float32 [n, heads * head_dim] of queries [n, heads, head_dim] over keys and values [T,
    kv_heads, head_dim]."""
    n = q.shape[0]
    before = torch.ones(n, rows.committed, dtype=torch.bool, device=q.device)
    seen = torch.cat([before, rows.mask], 1)
    if shape.window > 0:
        at = torch.cat([torch.arange(rows.committed, device=q.device), rows.positions])
        seen &= rows.own[:, None] - at[None, :] < shape.window
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=seen[None, None],
        scale=shape.scale,
        enable_gqa=shape.num_heads != shape.num_kv_heads,
    )
    return out[0].transpose(0, 1).reshape(n, -1).float()
