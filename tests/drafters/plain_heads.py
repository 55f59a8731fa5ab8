"""Random heads in published forms, an independent forward of them, and bundles for any target.

``plain_logits`` is written from the equations alone: whole sequences, no cache, one row at a time
for drafted tokens; nothing of the drafters' code is used but names of tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.bundle import BundleConfig, ShortlistBundle


def bundle_for(target: Any, clusters: int = 8, router: str = "output") -> ShortlistBundle:
    """Random token orders, clusters and router for a target."""
    generator = torch.Generator().manual_seed(0)
    vocab, width = target.vocab_size, target.hidden_size
    offsets = torch.linspace(0, vocab, clusters + 1).long()
    weights = {
        "w2": torch.randn(clusters, width, generator=generator),
        "b2": torch.randn(clusters, generator=generator),
    }
    config = BundleConfig(
        method="dynaspec",
        target=target.name,
        vocab_size=vocab,
        hidden_size=width,
        head_hash=target.head_hash(),
        router=router,
        num_clusters=clusters,
        shortlist_size=vocab // 4,
    )
    return ShortlistBundle(
        config,
        frequency=torch.randperm(vocab, generator=generator),
        generated=torch.randperm(vocab, generator=generator),
        cluster_tokens=torch.randperm(vocab, generator=generator),
        cluster_offsets=offsets,
        router=weights,
    )


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


class PlainHead:
    """The equations over whole sequences. ``tensors`` by the names of EAGLE's files (``midlayer.``
    or ``layers.0.``); ``inv_freq`` of the rotation with its ``scaling``."""

    def __init__(
        self,
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        embedding: Tensor,
        head: Tensor,
        inv_freq: Tensor | None = None,
        scaling: float = 1.0,
        window: int = 0,
    ) -> None:
        self.c = config.get("transformer_layer_config", config)
        self.outer = config
        self.t = {k.replace("midlayer.", "layers.0."): v for k, v in tensors.items()}
        self.embedding, self.head, self.window = embedding, head, window
        self.heads = self.c["num_attention_heads"]
        self.kv_heads = self.c.get("num_key_value_heads", self.heads)
        self.dim = self.c.get("head_dim", self.c["hidden_size"] // self.heads)
        self.eps = self.c.get("rms_norm_eps", 1e-6)
        half = torch.arange(self.dim // 2).float() * 2 / self.dim
        theta = self.c.get("rope_theta", 10000.0)
        self.inv_freq = theta**-half if inv_freq is None else inv_freq
        self.scaling = scaling
        self.deep = "layers.0.hidden_norm.weight" in self.t

    def states(self, seen: Tensor) -> Tensor:
        """Of the target's rows [n, *]: what pairs carry."""
        if not self.deep:
            return seen
        return seen @ self.t["fc.weight"].t()

    def rows(self, states: Tensor, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x [n, D] out of the last layer of rows with these states, tokens, positions; ``mask``
        bool [n, n]: which rows see which."""
        e = self.embedding[tokens]
        if self.deep:
            n = rms(states, self.t["layers.0.hidden_norm.weight"], self.eps)
            e = rms(e, self.t["layers.0.input_layernorm.weight"], self.eps)
            x = n if self.outer.get("norm_before_residual") else states
            read = torch.cat([e, n], 1)
        else:
            x = torch.cat([e, states], 1) @ self.t["fc.weight"].t()
            x = x + self.t.get("fc.bias", 0.0)
            read = x
        layer = 0
        while f"layers.{layer}.mlp.down_proj.weight" in self.t:
            if layer:
                read = rms(x, self.t[f"layers.{layer}.input_layernorm.weight"], self.eps)
            x = x + self._attention(layer, read, positions, mask)
            m = rms(x, self.t[f"layers.{layer}.post_attention_layernorm.weight"], self.eps)
            gate = self._linear(layer, "mlp.gate_proj", m)
            inner = gate * torch.sigmoid(gate) * self._linear(layer, "mlp.up_proj", m)
            x = x + self._linear(layer, "mlp.down_proj", inner)
            layer += 1
        return x

    def logits(self, x: Tensor) -> Tensor:
        if self.deep:
            x = rms(x, self.t["norm.weight"], self.eps)
        return x @ self.head.t()

    def _linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        y = x @ self.t[f"layers.{layer}.{name}.weight"].t()
        return y + self.t.get(f"layers.{layer}.{name}.bias", 0.0)

    def _attention(self, layer: int, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        n, out = x.shape[0], []
        q = self._heads(layer, "q", x, positions, self.heads)
        k = self._heads(layer, "k", x, positions, self.kv_heads)
        v = self._linear(layer, "self_attn.v_proj", x).view(n, self.kv_heads, self.dim)
        if self.window:
            mask = mask & (positions[:, None] - positions[None, :] < self.window)
        for h in range(self.heads):
            g = h // (self.heads // self.kv_heads)
            scores = q[:, h] @ k[:, g].t() / self.dim**0.5
            scores = scores.masked_fill(~mask, -torch.inf)
            out.append(torch.softmax(scores, -1) @ v[:, g])
        return self._linear(layer, "self_attn.o_proj", torch.cat(out, 1))

    def _heads(self, layer: int, which: str, x: Tensor, positions: Tensor, count: int) -> Tensor:
        y = self._linear(layer, f"self_attn.{which}_proj", x).view(-1, count, self.dim)
        norm = self.t.get(f"layers.{layer}.self_attn.{which}_norm.weight")
        if norm is not None:
            y = rms(y, norm, self.eps)
        angle = positions.float()[:, None, None] * self.inv_freq
        cos, sin = angle.cos() * self.scaling, angle.sin() * self.scaling
        a, b = y.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of these shapes: norms about 1, matrices that keep the scale of their input."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            made[name] = 1 + 0.2 * noise
        else:
            made[name] = noise * (1.0 / shape[-1] ** 0.5 if len(shape) > 1 else 0.3)
    return made


def head_shapes(
    deep: bool,
    width: int,
    target_width: int,
    rows: int,
    layers: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    inner: int = 24,
    taps: int = 3,
) -> dict[str, tuple[int, ...]]:
    """Of an EAGLE-1 (or ``deep``: EAGLE-3) file without embeddings and vocabulary map."""
    q, kv = heads * head_dim, kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (width, taps * target_width if deep else 2 * width)
    }
    for i in range(layers):
        reads = 2 * width if deep and i == 0 else width
        prefix = "midlayer." if deep and i == 0 else f"layers.{i}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (q, reads),
            f"{prefix}self_attn.k_proj.weight": (kv, reads),
            f"{prefix}self_attn.v_proj.weight": (kv, reads),
            f"{prefix}self_attn.o_proj.weight": (width, q),
            f"{prefix}mlp.gate_proj.weight": (inner, width),
            f"{prefix}mlp.up_proj.weight": (inner, width),
            f"{prefix}mlp.down_proj.weight": (width, inner),
            f"{prefix}post_attention_layernorm.weight": (width,),
        }
        if i or deep:
            shapes[f"{prefix}input_layernorm.weight"] = (width,)
    if deep:
        shapes |= {
            "midlayer.hidden_norm.weight": (width,),
            "norm.weight": (width,),
            "lm_head.weight": (rows, width),
        }
    return shapes
