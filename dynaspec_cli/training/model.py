"""The drafter as a trainable module, unrolled over several draft steps.

Tensors are named as in the drafter's safetensors file, so that training and inference
(drafters/eagle.py) share one set of weights. Activations are bf16, parameters and norms float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynaspec_cli.drafters.config import DrafterConfig


class _RmsNorm(torch.autograd.Function):
    """y = n w with n = x r, r = (mean(x^2) + eps)^-1/2, in float32, and its gradient written down:
    dx = r (g w - n mean(g w n)), dw = sum(g n). Automatic differentiation takes three times as many
    passes over rows of 640 numbers, which then cost as much as the products between them."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]
        scale = mean_square.add_(eps).rsqrt_()
        normed = wide * scale
        context.save_for_backward(normed, scale, weight)
        return (normed * weight).to(x.dtype)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:
        normed, scale, weight = context.saved_tensors
        wide = grad.float()
        for_weight = (wide * normed).flatten(0, -2)
        for_x = None
        if context.needs_input_grad[0]:
            inner = (for_weight @ weight).view(scale.shape) / normed.shape[-1]  # mean(g w n)
            wide = (wide * weight).addcmul_(normed, inner, value=-1).mul_(scale)
            for_x = wide.to(grad.dtype)
        return for_x, for_weight.sum(0), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of x [..., d] computed in float32, returned in the dtype of ``x``."""
    normed: Tensor = _RmsNorm.apply(x, weight, eps)
    return normed


class DrafterLayer(nn.Module):
    """A pre-norm decoder layer with the tensors of ops.layer.LAYER_WEIGHTS."""

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
        o = attend(q, past, begin, c.window, c.attention_scale)
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


def attend(
    q: Tensor, past: list[tuple[Tensor, Tensor]], begin: int, window: int, scale: float
) -> Tensor:
    """Attention [B, heads, R, D] of unrolled step s = ``len(past)`` - 1, for the R rows from
    ``begin`` on; see DrafterLayer.forward.

    ``past`` holds keys and values [B, kv heads, T, D] of step 0, R of the later steps. Of those a
    row sees one each, so they are columns computed by themselves: a mask over all the keys of all
    steps would cost several times as much. The softmax is float32.
    """
    batch, _, rows, width = q.shape
    keys, values = past[0]
    step, groups, length = len(past) - 1, keys.shape[1], keys.shape[2]
    shared = q.reshape(batch, groups, -1, rows, width)  # query heads by their key head
    scores = (shared.flatten(2, 3) @ keys.transpose(2, 3)).float() * scale
    scores = scores.view(*shared.shape[:-1], length)
    row = torch.arange(begin, length, device=q.device)[:, None]
    column = torch.arange(length, device=q.device)[None, :]
    unseen = column > row - step
    if window:
        unseen |= row - column >= window
    parts = [scores.masked_fill(unseen, -torch.inf)]
    ancestors = []
    for s in range(1, step + 1):
        # The row's ancestor in step s stands step - s rows before it; the first rows have none.
        up = step - s
        key, value = (F.pad(x[:, :, : rows - up], (0, 0, up, 0))[:, :, None] for x in past[s])
        score = (shared * key).sum(-1, keepdim=True, dtype=torch.float32) * scale
        parts.append(score.masked_fill((row < begin + up), -torch.inf))
        ancestors.append(value)
    share = torch.softmax(torch.cat(parts, -1), -1).to(q.dtype)
    out = (share[..., :length].flatten(2, 3) @ values).view(shared.shape)
    for s, value in enumerate(ancestors):
        out = out + share[..., length + s, None] * value
    return out.reshape(q.shape)


class DrafterModule(nn.Module):
    """Trainable drafter; ``forward`` unrolls draft steps over whole sequences."""

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

    def rope(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        c = self.config
        inverse = 1.0 / c.rope_theta ** (
            torch.arange(0, c.head_dim, 2, device=device).float() / c.head_dim
        )
        angle = torch.arange(length, device=device).float()[:, None] * inverse
        angle = torch.cat([angle, angle], 1)
        return angle.cos(), angle.sin()

    def forward(
        self,
        features: Tensor,
        next_embedding: Tensor,
        current_embedding: Tensor,
        depth: int,
        begin: int = 0,
        pass_on: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Outputs [B, T - begin, d] of ``depth`` unrolled draft steps: the predicted features of
        the position after each row, in units of ``feature_scale`` as ``features`` [B, T, d] are;
        embeddings [B, T, d] of each row's two tokens. Rows before ``begin`` are context, of which
        step 0 takes keys and values alone. A later step reads the output of the step before, put
        through ``pass_on``; its rows below s of step s are void."""
        c = self.config
        past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.layers]
        cos, sin = self.rope(features.shape[1], features.device)
        # The tokens' part of the layers' input is the same in every step.
        parts = [rms_norm(next_embedding, self.next_norm, c.eps)]
        if c.use_current_token:
            parts.append(rms_norm(current_embedding, self.current_norm, c.eps))
        from_feature, from_tokens = self.fc.to(features.dtype).split(
            [c.hidden_size, c.inputs - c.hidden_size], 1
        )
        token_input = F.linear(torch.cat(parts, -1), from_tokens)
        outputs: list[Tensor] = []
        x, first = features, features[:, begin : begin + 1]
        for step in range(depth):
            if step == 1:
                token_input = token_input[:, begin:]
            if step:
                given = outputs[-1][:, :-1]
                x = torch.cat([first, given if pass_on is None else pass_on(given)], 1)
            h = x * self.gate.to(x.dtype) + token_input
            h = h + F.linear(rms_norm(x, self.feature_norm, c.eps), from_feature)
            for layer, layer_past in zip(self.layers, past, strict=True):
                # In step 0 the layers below the last one compute the context as well: the next
                # layer takes its keys and values from there.
                whole = step == 0 and layer is not self.layers[-1]
                h = layer(h, cos, sin, layer_past, 0 if whole else begin)
            outputs.append(h)
        return outputs
