"""Which models the native path can run, read from their config: families, layer shapes, rotary
parameters.

Everything the native layers cannot express is named in a reason, and the caller takes the
``transformers`` path with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.reference import LayerShape

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary types whose frequencies do not depend on the length of the text."""

SHARED_KEYS = (
    "attention_bias",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "vocab_size",
)
FAMILY_KEYS = {
    "gemma3_text": (
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "layer_types",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "use_bidirectional_attention",
    ),
    "llama": ("hidden_act", "mlp_bias"),
    "qwen2": ("hidden_act", "layer_types", "sliding_window"),
    "qwen3": ("hidden_act", "layer_types", "sliding_window"),
}
NO_ATTENTION_BIAS_KEY = ("qwen2",)
"""Families that always have q, k, v biases and no switch for them."""


@dataclass(frozen=True)
class NativeSpec:
    """``shapes`` one a layer; ``rope`` the name of each layer's rotary table, ``rope_parameters``
    by that name; ``embed_scale`` is None where embeddings are used as they are; ``gemma`` norms are
    stored without their "+1"."""

    family: str
    shapes: tuple[LayerShape, ...]
    rope: tuple[str, ...]
    rope_parameters: dict[str, dict[str, Any]]
    hidden_size: int
    vocab_size: int
    max_context: int
    eps: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    embed_scale: float | None
    softcap: float | None

    @property
    def gemma(self) -> bool:
        return self.family == "gemma3_text"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as ``transformers`` understands it: read directly where it says everything, else
    completed with the family's defaults by ``AutoConfig`` (which costs a second of imports)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise DynaSpecError(
            f"{folder}: config.json cannot be read ({error}); expected a model folder of "
            "transformers"
        ) from error
    if family in FAMILY_KEYS and all(key in config for key in _keys(family)):
        return dict(config)
    from transformers import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(folder).to_dict())
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise DynaSpecError(
            f"{folder}: transformers does not know this model ({text[0]})"
        ) from error


def _keys(family: str) -> tuple[str, ...]:
    shared = tuple(
        k for k in SHARED_KEYS if not (k == "attention_bias" and family in NO_ATTENTION_BIAS_KEY)
    )
    return shared + FAMILY_KEYS[family]


def native_spec(config: dict[str, Any]) -> NativeSpec | str:
    """The spec of a supported model, or the reason why it is not."""
    family = str(config.get("model_type"))
    if family not in FAMILY_KEYS:
        return f"model type {family} has no native layers"
    if config.get("quantization_config"):
        return "its weights are quantised"
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation not in ACTIVATIONS:
        return f"activation {activation} has no native form"
    for key in (
        "attention_bias",
        "mlp_bias",
        "attn_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if config.get(key):
            return f"{key} has no native form"
    types, window = config.get("layer_types"), config.get("sliding_window") or 0
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    if types is None:
        types = ["full_attention"] * layers
    if set(types) - {"full_attention", "sliding_attention"}:
        return f"layer types {sorted(set(types))} have no native form"
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    parameters = _rope_parameters(config["rope_parameters"], types)
    for entry in parameters.values():
        if entry.get("rope_type", "default") not in STATIC_ROPE:
            return f"rotary type {entry.get('rope_type')} changes with the length of the text"
        if entry.get("partial_rotary_factor", 1.0) != 1.0:
            return "a partial rotary embedding has no native form"
    scale = float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5
    eps = float(config["rms_norm_eps"])
    shapes = tuple(
        LayerShape(
            heads,
            int(config["num_key_value_heads"]),
            head_dim,
            eps,
            scale,
            int(window) if kind == "sliding_attention" else 0,
            ACTIVATIONS[activation],
        )
        for kind in types
    )
    gemma = family == "gemma3_text"
    return NativeSpec(
        family=family,
        shapes=shapes,
        rope=tuple(types) if len(parameters) > 1 else (next(iter(parameters)),) * layers,
        rope_parameters=parameters,
        hidden_size=int(config["hidden_size"]),
        vocab_size=int(config["vocab_size"]),
        max_context=int(config["max_position_embeddings"]),
        eps=eps,
        tied=bool(config["tie_word_embeddings"]),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("gemma3_text", "qwen3"),
        embed_scale=float(config["hidden_size"]) ** 0.5 if gemma else None,
        softcap=config.get("final_logit_softcapping"),
    )


def _rope_parameters(parameters: dict[str, Any], types: list[str]) -> dict[str, dict[str, Any]]:
    """By layer type where the config has one set a type, else one set for all."""
    if all(isinstance(parameters.get(kind), dict) for kind in types):
        return {kind: dict(parameters[kind]) for kind in sorted(set(types))}
    return {"all": dict(parameters)}
