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
"""Rotary types whose frequencies do not depend on the length of the text; "longrope" is one where
its short and long factors are the same."""

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
GEMMA_KEYS = (
    "hidden_activation",
    "query_pre_attn_scalar",
    "sliding_window",
    "layer_types",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "use_bidirectional_attention",
)
FAMILY_KEYS = {
    "gemma2": GEMMA_KEYS,
    "gemma3_text": GEMMA_KEYS,
    "llama": ("hidden_act", "mlp_bias"),
    "mistral": ("hidden_act", "sliding_window"),
    "qwen2": ("hidden_act", "layer_types", "sliding_window"),
    "qwen3": ("hidden_act", "layer_types", "sliding_window"),
}
SIZES = tuple(key for key in SHARED_KEYS if key.startswith("num_") or key.endswith("_size"))
NO_ATTENTION_BIAS_KEY = ("mistral", "qwen2")
"""Families without a switch for biases: Qwen 2 always has those of q, k and v, Mistral none."""

NULLABLE = (
    "head_dim",
    "sliding_window",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "use_bidirectional_attention",
)
"""Keys whose null means something; any other null is the family's default."""


@dataclass(frozen=True)
class NativeSpec:
    """``shapes`` one a layer; ``rope`` the name of each layer's rotary table, ``rope_parameters``
    by that name; ``embed_scale`` is None where embeddings are used as they are; ``norm_offset`` is
    added to the stored norms (a folder holds Gemma's without their "+1"); ``post_norms``: outputs
    of attention and MLP are normed too; ``tied``: the head is the embeddings unless one is
    stored."""

    family: str
    shapes: tuple[LayerShape, ...]
    rope: tuple[str, ...]
    rope_parameters: dict[str, dict[str, Any]]
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_context: int
    eps: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    post_norms: bool
    norm_offset: float
    embed_scale: float | None
    softcap: float | None


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
    if family in FAMILY_KEYS and all(_says(config, key) for key in _keys(family)):
        return dict(config)
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(folder)
        whole = dict(found.to_dict())
        if family in FAMILY_KEYS:
            # What the family fills in only where it is asked for (a null of num_key_value_heads).
            whole |= {key: getattr(found, key, whole.get(key)) for key in _keys(family)}
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise DynaSpecError(
            f"{folder}: transformers does not know this model ({text[0]})"
        ) from error
    if family in FAMILY_KEYS:
        for key in SIZES:
            if not isinstance(whole.get(key), int):
                raise DynaSpecError(
                    f"{folder}: config.json has {key}: {whole.get(key)}, expected a number"
                )
    return whole


def _says(config: dict[str, Any], key: str) -> bool:
    return key in config and (config[key] is not None or key in NULLABLE)


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
    for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if config.get(key):
            return f"{key} has no native form"
    types, window = config.get("layer_types"), config.get("sliding_window") or 0
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    if types is None:
        windowed = family == "mistral" and window
        types = ["sliding_attention" if windowed else "full_attention"] * layers
    if set(types) - {"full_attention", "sliding_attention"}:
        return f"layer types {sorted(set(types))} have no native form"
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    parameters = _rope_parameters(config["rope_parameters"], types)
    for entry in parameters.values():
        if not _is_static(entry):
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
            float(config.get("attn_logit_softcapping") or 0.0),
        )
        for kind in types
    )
    gemma = family in ("gemma2", "gemma3_text")
    return NativeSpec(
        family=family,
        shapes=shapes,
        rope=tuple(types) if len(parameters) > 1 else (next(iter(parameters)),) * layers,
        rope_parameters=parameters,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        vocab_size=int(config["vocab_size"]),
        max_context=int(config["max_position_embeddings"]),
        eps=eps,
        tied=bool(config["tie_word_embeddings"]),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("gemma3_text", "qwen3"),
        post_norms=gemma,
        norm_offset=1.0 if gemma else 0.0,
        embed_scale=float(config["hidden_size"]) ** 0.5 if gemma else None,
        softcap=config.get("final_logit_softcapping"),
    )


def _is_static(rope: dict[str, Any]) -> bool:
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        same = rope.get("short_factor") == rope.get("long_factor")
        return same and rope.get("attention_factor") is not None
    return kind in STATIC_ROPE


def _rope_parameters(parameters: dict[str, Any], types: list[str]) -> dict[str, dict[str, Any]]:
    """By layer type where the config has one set a type, else one set for all."""
    if all(isinstance(parameters.get(kind), dict) for kind in types):
        return {kind: dict(parameters[kind]) for kind in sorted(set(types))}
    return {"all": dict(parameters)}
