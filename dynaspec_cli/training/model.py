"""The drafter as a trainable module, unrolled over several draft steps.

Tensors are named as in the drafter's safetensors file, so that training and inference
(drafters/eagle.py) share one set of weights. Activations are bf16, parameters and norms float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynaspec_cli.drafters.config import DrafterConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm computed in float32, returned in the dtype of ``x``."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)


class DrafterLayer(nn.Module):
    """A pre-norm decoder layer with the tensors of ops.reference.LAYER_WEIGHTS."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = c = config
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.input_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.qkv = nn.Parameter(torch.empty(q + 2 * kv, c.hidden_size))
        self.out = nn.Parameter(torch.empty(c.hidden_size, q))
        self.mlp_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.gate_up = nn.Parameter(torch.empty(2 * c.intermediate_size, c.hidden_size))
        self.down = nn.Parameter(torch.empty(c.hidden_size, c.intermediate_size))
        if c.has_qk_norm:
            self.q_norm = nn.Parameter(torch.ones(c.head_dim))
            self.k_norm = nn.Parameter(torch.ones(c.head_dim))
        if c.has_qkv_bias:
            self.qkv_bias = nn.Parameter(torch.zeros(q + 2 * kv))
        if c.has_post_norms:
            self.post_attention_norm = nn.Parameter(torch.ones(c.hidden_size))
            self.post_mlp_norm = nn.Parameter(torch.ones(c.hidden_size))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: list[tuple[Tensor, Tensor]], begin: int = 0
    ) -> Tensor:
        """x [B, T, d] of unrolled step ``len(past)``; ``past`` holds (keys, values) of the earlier
        steps and is extended. Returns the rows from ``begin`` on; those before are context, of
        which step 0 computes keys and values alone. Later steps get the rows from ``begin`` on
        only, as x [B, T - begin, d].

        A row of step s at position t attends, as it will at inference, to the step-0 rows of
        positions up to t - s (committed pairs) and to rows t - s + 1 .. t of steps 1 .. s (its own
        ancestors in the chain, and itself).
        """
        c, step = self.config, len(past)
        context = begin if step == 0 else 0
        q_width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        h = rms_norm(x, self.input_norm, c.eps)
        x = x[:, context:]
        batch, rows, _ = x.shape
        weight = self.qkv.to(x.dtype)
        bias = self.qkv_bias.to(x.dtype) if c.has_qkv_bias else None
        if context:
            q = F.linear(h[:, context:], weight[:q_width], None if bias is None else bias[:q_width])
            kv = F.linear(h, weight[q_width:], None if bias is None else bias[q_width:])
            k, v = kv.split([kv_width, kv_width], -1)
        else:
            q, k, v = F.linear(h, weight, bias).split([q_width, kv_width, kv_width], -1)
        q = q.view(batch, rows, c.num_heads, c.head_dim)
        k = k.view(batch, -1, c.num_kv_heads, c.head_dim)
        v = v.view(batch, -1, c.num_kv_heads, c.head_dim).transpose(1, 2)
        if c.has_qk_norm:
            q, k = rms_norm(q, self.q_norm, c.eps), rms_norm(k, self.k_norm, c.eps)
        q = rotate(q, cos[begin:], sin[begin:]).transpose(1, 2)
        k = rotate(k, cos[begin - context :], sin[begin - context :]).transpose(1, 2)
        past.append((k, v))
        if step == 0 and begin == 0 and (c.window == 0 or c.window >= rows):
            o = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=c.attention_scale, enable_gqa=True
            )
        else:
            mask = unrolled_mask(begin + rows, begin, step, c.window, x.device)
            keys = torch.cat([pair[0] for pair in past], 2)
            values = torch.cat([pair[1] for pair in past], 2)
            o = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, scale=c.attention_scale, enable_gqa=True
            )
        o = F.linear(o.transpose(1, 2).reshape(batch, rows, -1), self.out.to(x.dtype))
        if c.has_post_norms:
            o = rms_norm(o, self.post_attention_norm, c.eps)
        x = x + o
        gate, up = F.linear(rms_norm(x, self.mlp_norm, c.eps), self.gate_up.to(x.dtype)).chunk(
            2, -1
        )
        gate = F.silu(gate) if c.activation == "silu" else F.gelu(gate, approximate="tanh")
        m = F.linear(gate * up, self.down.to(x.dtype))
        if c.has_post_norms:
            m = rms_norm(m, self.post_mlp_norm, c.eps)
        return x + m


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, T, heads, head_dim] with cos, sin [T, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos[:, None].to(x.dtype) + turned * sin[:, None].to(x.dtype)


def unrolled_mask(length: int, begin: int, step: int, window: int, device: torch.device) -> Tensor:
    """bool [T - begin, T + step (T - begin)] for the rows from ``begin`` on: columns are the T keys
    of step 0, then those that step 1, ... has, of the rows from ``begin`` on (see
    DrafterLayer.forward)."""
    row = torch.arange(begin, length, device=device)[:, None]
    column = torch.arange(length, device=device)[None, :]
    committed = column <= row - step
    if window:
        committed &= row - column < window
    # A row too near the start has no committed pair left; its own key always remains.
    chain = [column[:, begin:] == row - step + s for s in range(1, step + 1)]
    return torch.cat([committed, *chain], 1)


class DrafterModule(nn.Module):
    """Trainable drafter; ``forward`` is one unrolled step over whole sequences."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.gate = nn.Parameter(torch.full((d,), 0.7))
        self.fc = nn.Parameter(torch.zeros(d, config.inputs))
        self.feature_norm = nn.Parameter(torch.ones(d))
        self.next_norm = nn.Parameter(torch.ones(d))
        if config.use_current_token:
            self.current_norm = nn.Parameter(torch.ones(d))
        self.layers = nn.ModuleList(DrafterLayer(config) for _ in range(config.num_layers))

    def rope(self, length: int, offset: int, device: torch.device) -> tuple[Tensor, Tensor]:
        c = self.config
        inverse = 1.0 / c.rope_theta ** (
            torch.arange(0, c.head_dim, 2, device=device).float() / c.head_dim
        )
        angle = (torch.arange(length, device=device).float() + offset)[:, None] * inverse
        angle = torch.cat([angle, angle], 1)
        return angle.cos(), angle.sin()

    def forward(
        self,
        features: Tensor,
        next_embedding: Tensor,
        current_embedding: Tensor,
        past: list[list[tuple[Tensor, Tensor]]],
        rope: tuple[Tensor, Tensor],
        begin: int = 0,
    ) -> Tensor:
        """features [B, T, d] in units of ``feature_scale`` (the target's, or this module's own
        output of the step before); embeddings [B, T, d]; returns the predicted features of the
        following position, same units. Rows before ``begin`` are context: step 0 gets them and
        returns the others, later steps get and return the others alone [B, T - begin, d]."""
        c = self.config
        parts = [
            rms_norm(features, self.feature_norm, c.eps),
            rms_norm(next_embedding, self.next_norm, c.eps),
        ]
        if c.use_current_token:
            parts.append(rms_norm(current_embedding, self.current_norm, c.eps))
        x = features * self.gate.to(features.dtype) + F.linear(
            torch.cat(parts, -1), self.fc.to(features.dtype)
        )
        for layer, layer_past in zip(self.layers, past, strict=True):
            # In step 0 the layers below the last one compute the context as well: the next layer
            # takes its keys and values from there.
            whole = not layer_past and layer is not self.layers[-1]
            x = layer(x, *rope, layer_past, 0 if whole else begin)
        return x
