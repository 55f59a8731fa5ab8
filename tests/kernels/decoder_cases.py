"""Decoder layers of small models, and their arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.ops import (
    LayerWeights,
    decoder_layer,
    dense_layer,
    tree_mask,
)

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Shape:
    d: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 20
    ffn: int = 72
    dtype: torch.dtype = F32
    cache_dtype: torch.dtype = F32
    window: int = 0
    activation: str = "silu"
    bias: bool = False
    head_norms: bool = True
    post_norms: bool = True
    softcap: float = 0.0

    def args(self) -> tuple[int, int, int, float, float, int, str, float]:
        scale = self.head_dim**-0.5
        sizes = (self.heads, self.kv_heads, self.head_dim)
        return (*sizes, 1e-6, scale, self.window, self.activation, self.softcap)


def make_weights(s: Shape, generator: torch.Generator) -> LayerWeights:
    def matrix(rows: int, k: int) -> Tensor:
        return (torch.randn(rows, k, generator=generator) * k**-0.5).to(s.dtype)

    def norm(size: int, present: bool = True) -> Tensor:
        if not present:
            return torch.empty(0)
        return 1 + 0.2 * torch.randn(size, generator=generator)

    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    return dense_layer(
        [
            norm(s.d),
            matrix(qkv, s.d),
            torch.randn(qkv, generator=generator) if s.bias else torch.empty(0),
            norm(s.head_dim, s.head_norms),
            norm(s.head_dim, s.head_norms),
            matrix(s.d, s.heads * s.head_dim),
            norm(s.d, s.post_norms),
            norm(s.d),
            matrix(2 * s.ffn, s.d),
            matrix(s.d, s.ffn),
            norm(s.d, s.post_norms),
        ]
    )


class Model:
    """Layers with caches of their own; rows are named by token and position."""

    def __init__(self, s: Shape, layers: int, rows: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shape = s
        self.layers = [make_weights(s, generator) for _ in range(layers)]
        self.embedding = torch.randn(32, s.d, generator=generator)
        angle = torch.arange(4096)[:, None] * 100.0 ** -torch.linspace(0, 1, s.head_dim // 2)
        self.cos, self.sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        size = (layers, rows, s.kv_heads, s.head_dim)
        self.keys = torch.full(
            size, float("nan"), dtype=s.cache_dtype
        )  # unwritten rows must not be read
        self.values = torch.full(size, float("nan"), dtype=s.cache_dtype)

    def run(self, tokens: Tensor, positions: Tensor, mask: Tensor, committed: int) -> Tensor:
        """Output [n, d] of the last n = len(tokens) rows of the tree."""
        x = self.embedding[tokens]
        own = positions[positions.numel() - tokens.numel() :]
        for w, k, v in zip(self.layers, self.keys, self.values, strict=True):
            cos, sin = self.cos[own], self.sin[own]
            x = decoder_layer(x, w, k, v, cos, sin, positions, mask, committed, *self.shape.args())
        return x

    def extend(self, tokens: list[int], committed: int) -> Tensor:
        """A chain of tokens behind the committed rows."""
        n = len(tokens)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        return self.run(
            torch.tensor(tokens), torch.arange(committed, committed + n), mask, committed
        )

    def tree(self, tokens: list[int], parents: list[int], committed: int) -> Tensor:
        mask, depth = tree_mask(torch.tensor(parents))
        return self.run(torch.tensor(tokens), committed + depth, mask, committed)


def make_tokens(n: int, seed: int) -> list[int]:
    return torch.randint(0, 32, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7, 10, 11, 3, 12, 9, 14]

REFERENCE_SHAPES = {
    "gemma": Shape(kv_heads=1, head_dim=32, window=9, activation="gelu_tanh"),
    "gemma2": Shape(head_norms=False, window=9, activation="gelu_tanh", softcap=1.5),
    "llama": Shape(head_norms=False, post_norms=False),
    "qwen2": Shape(d=56, head_norms=False, post_norms=False, bias=True),
    "qwen3": Shape(d=60, heads=6, kv_heads=3, head_dim=10, post_norms=False),
    "one-group": Shape(kv_heads=4, head_dim=34),
    "fp16": Shape(dtype=F16),
    "mixed": Shape(cache_dtype=BF16),
    "bf16": Shape(
        d=64, head_dim=72, dtype=BF16, cache_dtype=BF16, window=30, activation="gelu_tanh"
    ),
    "bf16-llama": Shape(
        dtype=BF16, cache_dtype=BF16, head_norms=False, post_norms=False, bias=True
    ),
}


def layer_arguments(s: Shape, n: int = 3, committed: int = 4) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn(committed + n, s.kv_heads, s.head_dim, generator=generator)
    return {
        "x": torch.randn(n, s.d, generator=generator),
        "weights": make_weights(s, generator),
        "k_cache": cache.to(s.cache_dtype),
        "v_cache": cache.clone().to(s.cache_dtype),
        "cos": torch.ones(n, s.head_dim),
        "sin": torch.zeros(n, s.head_dim),
        "positions": torch.arange(committed, committed + n),
        "mask": torch.ones(n, n, dtype=torch.bool).tril(),
        "cache_len": committed,
        "num_heads": s.heads,
        "num_kv_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "eps": 1e-6,
        "scale": 0.25,
        "window": s.window,
        "activation": s.activation,
    }


def replaced(weights: object, **changed: object) -> LayerWeights:
    assert isinstance(weights, LayerWeights)
    return weights._replace(**changed)
