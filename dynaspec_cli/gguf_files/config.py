"""From a file's keys to the configuration that ``transformers`` would have for the same model.

What the keys mean is llama.cpp's (``src/models/*.cpp``): where a key is missing, its default
stands here. Anything else that changes numbers is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaspec_cli.gguf_files.fields import Fields
from dynaspec_cli.gguf_files.layout import ROPE_FACTORS, Slot, check_tensors, slots
from dynaspec_cli.gguf_files.model import GgufModel

DEFAULT_ROPE_BASE = 10000.0
GEMMA2_WINDOW = 4096
GEMMA2_ATTENTION_CAP, GEMMA2_FINAL_CAP = 50.0, 30.0
LARGE_GEMMA_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose queries are scaled by the model's width over its heads instead of
the head's size; no key says so."""

LONGEST_LIST = 1 << 20


@dataclass(frozen=True)
class GgufConfig:
    """``config``: keys as in a config.json of ``transformers``; ``slots``: every tensor by our
    name."""

    config: dict[str, Any]
    slots: dict[str, Slot]


def is_known(model: GgufModel) -> bool:
    """Are the model's layers read by ourselves?"""
    return model.architecture in FAMILIES


def gguf_config(model: GgufModel) -> GgufConfig:
    """The configuration of a model of ``FAMILIES``, with every key and every tensor accounted for.

    Raises ``DynaSpecError`` that names what is missing, of no use, or contradictory.
    """
    fields = Fields(model)
    if (experts := fields.integer("expert_count", 0, least=0)) > 0:
        raise fields.refuse(
            "expert_count", f"is {experts}: a mixture of experts, which has no native layers"
        )
    config = _shared(model, fields)
    FAMILIES[model.architecture](model, fields, config)
    fields.check_all_used()
    wanted = slots(model.architecture, config)
    check_tensors(model.tensors, wanted, {ROPE_FACTORS} if _has_factors(model) else set())
    return GgufConfig(config, wanted)


def _shared(model: GgufModel, fields: Fields) -> dict[str, Any]:
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    key_length = fields.integer("attention.key_length", None)
    if key_length is None and hidden % heads:
        raise fields.refuse("attention.head_count", f"is {heads}, which does not divide {hidden}")
    size = key_length or hidden // heads
    for name in ("attention.value_length", "rope.dimension_count"):
        if (given := fields.integer(name, size)) != size:
            raise fields.refuse(name, f"is {given}, expected the head's size {size}")
    kv_heads = fields.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise fields.refuse("attention.head_count_kv", f"is {kv_heads}, no divisor of {heads}")
    embedding = "token_embd.weight"
    vocabulary = model.tensors.shape(embedding)[0] if embedding in model.tensors else 1
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "attention_bias": False,
    }


def _llama(model: GgufModel, fields: Fields, config: dict[str, Any]) -> None:
    window = fields.integer("attention.sliding_window", 0, least=0)
    mistral = window > 0
    config.update(
        model_type="mistral" if mistral else "llama",
        architectures=["MistralForCausalLM" if mistral else "LlamaForCausalLM"],
        hidden_act="silu",
        rope_parameters=_rope(model, fields, config["head_dim"]),
        attention_bias="blk.0.attn_q.bias" in model.tensors,
        **({"sliding_window": window} if mistral else {"mlp_bias": False}),
    )
    _plain_scale(fields, config)


def _qwen2(model: GgufModel, fields: Fields, config: dict[str, Any]) -> None:
    _qwen(model, fields, config, "qwen2", "Qwen2ForCausalLM")
    config["attention_bias"] = True


def _qwen3(model: GgufModel, fields: Fields, config: dict[str, Any]) -> None:
    _qwen(model, fields, config, "qwen3", "Qwen3ForCausalLM")


def _qwen(
    model: GgufModel, fields: Fields, config: dict[str, Any], family: str, made_by: str
) -> None:
    window = fields.integer("attention.sliding_window", 0, least=0)
    if 0 < window < config["max_position_embeddings"]:
        raise fields.refuse(
            "attention.sliding_window", f"is {window}, but the file does not say in which layers"
        )
    config.update(
        model_type=family,
        architectures=[made_by],
        hidden_act="silu",
        layer_types=["full_attention"] * config["num_hidden_layers"],
        use_sliding_window=False,
        sliding_window=None,
        rope_parameters=_rope(model, fields, config["head_dim"]),
    )
    _plain_scale(fields, config)


def _gemma2(model: GgufModel, fields: Fields, config: dict[str, Any]) -> None:
    _gemma(fields, config, "gemma2", "Gemma2ForCausalLM", window=GEMMA2_WINDOW, period=2)
    config.update(
        attn_logit_softcapping=fields.number("attn_logit_softcapping", GEMMA2_ATTENTION_CAP),
        final_logit_softcapping=fields.number("final_logit_softcapping", GEMMA2_FINAL_CAP),
        rope_parameters=_rope(model, fields, config["head_dim"]),
    )
    base = config["rope_parameters"]["rope_theta"]
    if (swa := fields.number("rope.freq_base_swa", base)) != base:
        raise fields.refuse("rope.freq_base_swa", f"is {swa}, expected {base} in all layers")


def _gemma3(model: GgufModel, fields: Fields, config: dict[str, Any]) -> None:
    _gemma(fields, config, "gemma3_text", "Gemma3ForCausalLM", window=0, period=6)
    local = {
        "rope_type": "default",
        "rope_theta": fields.number("rope.freq_base_swa", DEFAULT_ROPE_BASE),
    }
    config.update(
        attn_logit_softcapping=None,
        final_logit_softcapping=fields.number("final_logit_softcapping", None) or None,
        use_bidirectional_attention=False,
        rope_parameters={
            "full_attention": _rope(model, fields, config["head_dim"]),
            "sliding_attention": local,
        },
    )


def _gemma(
    fields: Fields, config: dict[str, Any], family: str, made_by: str, window: int, period: int
) -> None:
    layers = config["num_hidden_layers"]
    size = fields.integer("attention.sliding_window", window, least=0)
    windowed = fields.pattern("attention.sliding_window_pattern", period, layers)
    large = layers == LARGE_GEMMA_LAYERS[fields.prefix]
    width = config["hidden_size"] // config["num_attention_heads"]
    scale = fields.number("attention.scale", 0.0)
    config.update(
        model_type=family,
        architectures=[made_by],
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=size or None,
        layer_types=[
            "sliding_attention" if flag and size else "full_attention" for flag in windowed
        ],
        query_pre_attn_scalar=(
            _scalar(scale) if scale else (width if large else config["head_dim"])
        ),
    )


def _scalar(scale: float) -> float:
    """The number whose root divides the queries: whole, where the float32 in the file means one."""
    value = scale**-2
    return round(value) if math.isclose(value, round(value), rel_tol=1e-5) else value


def _plain_scale(fields: Fields, config: dict[str, Any]) -> None:
    usual = config["head_dim"] ** -0.5
    scale = fields.number("attention.scale", 0.0)
    if scale and not math.isclose(scale, usual, rel_tol=1e-6):
        raise fields.refuse("attention.scale", f"is {scale}, expected {usual:.6g}")


FAMILIES: dict[str, Callable[[GgufModel, Fields, dict[str, Any]], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
"""By ``general.architecture``."""

FACTOR_FAMILIES = ("llama", "qwen2", "qwen3")


def _has_factors(model: GgufModel) -> bool:
    return ROPE_FACTORS in model.tensors and model.architecture in FACTOR_FAMILIES


def _rope(model: GgufModel, fields: Fields, size: int) -> dict[str, Any]:
    """``rope_parameters`` of ``transformers``. The tensor of factors (Llama 3.1 and later) divides
    each frequency by its own factor: "longrope" whose short and long factors are the same."""
    base = fields.number("rope.freq_base", DEFAULT_ROPE_BASE)
    kind = fields.text("rope.scaling.type", None)
    factor = fields.number("rope.scaling.factor", 0.0) or fields.number("rope.scale_linear", 0.0)
    if kind is None:
        kind = "linear" if factor and factor != 1.0 else "none"
    original = fields.integer("rope.scaling.original_context_length", None)
    attention = fields.number("rope.scaling.attn_factor", 1.0)
    plain = {"rope_type": "default", "rope_theta": base}
    if kind != "yarn" and attention != 1.0:
        raise fields.refuse("rope.scaling.attn_factor", f"is {attention} without yarn")
    if _has_factors(model):
        if kind not in ("none", "llama3"):
            raise fields.refuse("rope.scaling.type", f"is {kind!r} beside {ROPE_FACTORS}")
        return plain | _factors(model, fields, size)
    if kind == "none" or (kind in ("linear", "yarn") and factor == 1.0 and attention == 1.0):
        return plain
    if kind == "linear" and factor > 0:
        return {"rope_type": "linear", "rope_theta": base, "factor": factor}
    if kind == "yarn" and factor > 0:
        return _yarn(fields, base, factor, attention, original)
    if kind == "llama3":
        raise fields.refuse("rope.scaling.type", f"is 'llama3', but {ROPE_FACTORS} is missing")
    raise fields.refuse(
        "rope.scaling.type", f"is {kind!r} (factor {factor:g}), expected none, linear or yarn"
    )


def _yarn(
    fields: Fields, base: float, factor: float, attention: float, original: int | None
) -> dict[str, Any]:
    if original is None:
        raise fields.refuse("rope.scaling.original_context_length", "is missing, which yarn needs")
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": base,
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    if attention != 1.0:
        found["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    for name in ("beta_fast", "beta_slow"):
        if (value := fields.number(f"rope.scaling.yarn_{name}", None)) is not None:
            found[name] = value
    if (own := fields.number("rope.scaling.yarn_attn_factor", 1.0)) != 1.0:
        raise fields.refuse("rope.scaling.yarn_attn_factor", f"is {own}, expected 1")
    return found


def _factors(model: GgufModel, fields: Fields, size: int) -> dict[str, Any]:
    tensor = model.tensors[ROPE_FACTORS]
    tensor.check_finite()
    factors = tensor.floats().reshape(-1)
    if factors.size != size // 2 or not bool((factors > 0).all()):
        raise fields.refuse(
            "rope.dimension_count",
            f"asks for {size // 2} positive values in {ROPE_FACTORS}, which holds {factors.size}",
        )
    if bool(np.all(factors == 1.0)):
        return {}
    values = [float(factor) for factor in factors]
    return {
        "rope_type": "longrope",
        "short_factor": values,
        "long_factor": values,
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": fields.integer("context_length"),
    }
