"""A model of random weights, made where it runs, whose drafts are all accepted.

The layers' output projections are small, so that a token's own embedding decides what follows: the
token again (the head is the embeddings). The drafter passes the feature on. Times and bytes are
those of a real model of these sizes; the text is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.eagle import EagleDrafter, expected_shapes
from dynaspec_cli.ops.layer import LayerWeights, dense_layer
from dynaspec_cli.target.native_spec import NativeSpec, native_spec
from dynaspec_cli.target.native_weights import NativeWeights
from dynaspec_cli.target.static.target import StaticTarget
from dynaspec_cli.weights.weight import dense

SMALL = 1e-3


@dataclass(frozen=True)
class Sizes:
    """Of a Llama."""

    vocab: int = 128256
    hidden: int = 4096
    inner: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    context: int = 16384

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """config.json's values."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
        }

    def spec(self) -> NativeSpec:
        found = native_spec(self.config())
        assert not isinstance(found, str)
        return found


LLAMA_8B = Sizes()
TINY = Sizes(vocab=512, hidden=64, inner=96, layers=2, heads=4, kv_heads=2, context=2048)


def random_target(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> StaticTarget:
    """The static target of such a model, nothing captured."""

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        made = torch.empty(rows, columns, dtype=dtype, device=device)
        return made.normal_(0, scale * columns**-0.5)

    width, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    norm, none = torch.ones(sizes.hidden, device=device), torch.empty(0, device=device)

    def layer() -> LayerWeights:
        weights = {
            "input_norm": norm,
            "qkv": matrix(width + 2 * kv, sizes.hidden),
            "qkv_bias": none,
            "q_norm": none,
            "k_norm": none,
            "out": matrix(sizes.hidden, width, SMALL),
            "post_attention_norm": none,
            "mlp_norm": norm,
            "gate_up": matrix(2 * sizes.inner, sizes.hidden),
            "down": matrix(sizes.hidden, sizes.inner, SMALL),
            "post_mlp_norm": none,
        }
        return dense_layer([weights[name] for name in LayerWeights._fields[:-1]])

    table = dense(matrix(sizes.vocab, sizes.hidden))
    layers = [layer() for _ in range(sizes.layers)]
    weights = NativeWeights(table, table, layers, norm, str(dtype))
    return StaticTarget("random", sizes.spec(), weights, dtype, device, "random")


def passing_drafter(target: Any, sizes: Sizes) -> EagleDrafter:
    """One layer of the target's sizes whose output is its input feature."""
    config = DrafterConfig(
        target_name="random",
        head_hash=target.head_hash(),
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        num_layers=1,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.inner,
        activation="silu",
        eps=1e-5,
        attention_scale=sizes.head_dim**-0.5,
        rope_theta=500000.0,
        window=0,
        feature_scale=1.0,
        has_qk_norm=False,
        has_qkv_bias=False,
        has_post_norms=False,
    )
    tensors = {}
    for name, shape in expected_shapes(config).items():
        makes = torch.zeros if name.rsplit(".", 1)[-1] in ("fc", "out", "down") else torch.ones
        tensors[name] = makes(shape, device=target.device, dtype=target.dtype)
    return EagleDrafter(config, tensors, target)
