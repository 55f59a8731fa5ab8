"""Drafters in the names and config that the draft models of ``dynaspec-vllm`` read.

vLLM builds its layers from config.json and fills in what it does not say with defaults of its own,
so everything is said; what its layers have no place for is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.drafters.checkpoint import DrafterCheckpoint
from dynaspec_cli.drafters.config import FORMAT, DrafterConfig
from dynaspec_cli.drafters.eagle import check_tensors
from dynaspec_cli.drafters.language_model import KIND as LANGUAGE_MODEL
from dynaspec_cli.drafters.published import (
    EAGLE1,
    EAGLE3,
    SPECULATORS,
    HeadConfig,
    read_head_config,
)
from dynaspec_cli.drafters.published_drafter import check_target
from dynaspec_cli.drafters.published_taps import KEY as TAPS_KEY
from dynaspec_cli.drafters.published_weights import FREQUENCIES, HeadWeights, read_weights, renamed
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.export.target_facts import TargetFacts

LANGUAGE_MODELS = {
    "LlamaForCausalLM": "DynaSpecLlamaForCausalLM",
    "MistralForCausalLM": "DynaSpecMistralForCausalLM",
    "Qwen2ForCausalLM": "DynaSpecQwen2ForCausalLM",
    "Qwen3ForCausalLM": "DynaSpecQwen3ForCausalLM",
    "Gemma3ForCausalLM": "DynaSpecGemma3ForCausalLM",
}
QUANTISED = "quantization_config"


@dataclass(frozen=True)
class VllmDrafter:
    """``form`` and ``method``: what dynaspec-vllm and vLLM call it; ``config`` and ``tensors`` of
    the draft folder; ``head`` [R, d] that it scores, whose rows are the tokens of ``vocab`` (None:
    row i is token i); ``target``: facts of the target's config that must agree. ``notes`` for the
    user."""

    form: str
    method: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    head: Tensor
    vocab: VocabMap | None
    target: dict[str, Any]
    notes: tuple[str, ...] = ()


def vllm_drafter(
    source: DrafterCheckpoint, target: TargetFacts, options: Mapping[str, str]
) -> VllmDrafter:
    """``source`` for vLLM. Raises DynaSpecError where it was made for another target or vLLM's
    layers cannot compute it."""
    if source.kind == FORMAT:
        return _trained(source, target)
    if source.kind == EAGLE1:
        return _eagle1(source, target, options)
    if source.kind in (EAGLE3, SPECULATORS):
        return _eagle3(source, target, options)
    if source.kind == LANGUAGE_MODEL:
        return _language_model(source, target)
    raise DynaSpecError(
        f"{_where(source)}: vLLM has no draft model for the kind {source.kind}; give an EAGLE-1, "
        "EAGLE-2 or EAGLE-3 head, a drafter of train-drafter --for vllm, or a language model"
    )


def _trained(source: DrafterCheckpoint, target: TargetFacts) -> VllmDrafter:
    where = _where(source)
    config = DrafterConfig.from_values(source.config, where)
    if config.use_current_token or not config.normed_features:
        raise DynaSpecError(
            f"{where}: it reads the feature before the final norm and the current token, and vLLM "
            "passes neither; train one with: dynaspec train-drafter --for vllm"
        )
    if config.window:
        raise DynaSpecError(f"{where}: an attention window has no place in vLLM's draft models")
    if (found := target.head_hash()) != config.head_hash:
        raise DynaSpecError(
            f"{where}: made for {config.target_name} (LM head {config.head_hash[:12]}), but "
            f"{target.name} has another (LM head {found[:12]}); give the --model that it was "
            "trained for"
        )
    check_tensors(config, source.tensors, Path(source.source))
    made = {
        "architectures": ["EagleDynaSpecTrainedForCausalLM"],
        **_common(target, config.hidden_size, config.intermediate_size, config.num_layers),
        "hidden_act": "silu" if config.activation == "silu" else "gelu_pytorch_tanh",
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_scale": config.attention_scale,
        "qkv_bias": config.has_qkv_bias,
        "qk_norm": config.has_qk_norm,
        "post_norms": config.has_post_norms,
    }
    tensors = _trained_tensors(config, source.tensors) | {"norm.weight": target.final_norm()}
    return VllmDrafter(FORMAT, "eagle", made, tensors, target.head(), None, _facts(target))


def _trained_tensors(config: DrafterConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In vLLM's names, the fused matrices taken apart again."""
    found = {"gate": tensors["gate"], "fc.weight": tensors["fc"]}
    found |= {f"{name}.weight": tensors[name] for name in ("feature_norm", "next_norm")}
    sizes = [n * config.head_dim for n in (config.num_heads, *(config.num_kv_heads,) * 2)]
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.", f"layers.{i}."
        parts = {"weight": tensors[f"{ours}qkv"]}
        if config.has_qkv_bias:
            parts["bias"] = tensors[f"{ours}qkv_bias"]
        for kind, fused in parts.items():
            for name, part in zip("qkv", fused.split(sizes), strict=True):
                found[f"{theirs}self_attn.{name}_proj.{kind}"] = part
        gate, up = tensors[f"{ours}gate_up"].chunk(2)
        found |= {f"{theirs}mlp.gate_proj.weight": gate, f"{theirs}mlp.up_proj.weight": up}
        names = {"out": "self_attn.o_proj", "down": "mlp.down_proj"}
        names |= {name: name for name in ("input_norm", "mlp_norm")}
        if config.has_qk_norm:
            names |= {f"{name}_norm": f"self_attn.{name}_norm" for name in "qk"}
        if config.has_post_norms:
            names |= {name: name for name in ("post_attention_norm", "post_mlp_norm")}
        for name, new in names.items():
            found[f"{theirs}{new}.weight"] = tensors[f"{ours}{name}"]
    return found


def _eagle1(
    source: DrafterCheckpoint, target: TargetFacts, options: Mapping[str, str]
) -> VllmDrafter:
    where = _where(source)
    config, weights = _published(source, target, options, EAGLE1)
    _refuse(where, config, weights, ("an LM head of its own", weights.head is not None))
    made = {
        "architectures": ["EagleDynaSpecForCausalLM"],
        **_published_config(config, weights, target),
        "fc_bias": weights.fc_bias is not None,
    }
    tensors = _tensors(source, where)
    return VllmDrafter(
        EAGLE1, "eagle", made, tensors, target.head(), None, _facts(target), config.notes
    )


def _eagle3(
    source: DrafterCheckpoint, target: TargetFacts, options: Mapping[str, str]
) -> VllmDrafter:
    where = _where(source)
    config, weights = _published(source, target, options, EAGLE3)
    whole = weights.head is None or weights.head.shape[0] == config.vocab_size
    _refuse(
        where,
        config,
        weights,
        ("a head of the whole vocabulary in another order", whole and weights.vocab is not None),
        ("biases of the attention's output alone", _biases(weights) == (False, True)),
    )
    taps = config.taps.of(target.num_layers, target.name, where)
    made = {
        "architectures": ["Eagle3DynaSpecForCausalLM"],
        **_published_config(config, weights, target),
        "draft_vocab_size": config.vocab_size if whole else weights.head.shape[0],  # type: ignore[union-attr]
        "target_hidden_size": config.target_hidden_size,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
        # Layer inputs, as vLLM counts; its two runners look in two places.
        TAPS_KEY: list(taps),
        "eagle_config": {TAPS_KEY: list(taps), "use_aux_hidden_state": True},
    }
    if weights.fc.shape[1] != len(taps) * config.target_hidden_size:
        raise DynaSpecError(
            f"{where}: fc reads {weights.fc.shape[1] // config.target_hidden_size} hidden states, "
            f"config.json names {len(taps)} layers"
        )
    tensors = {name: t for name, t in _tensors(source, where).items() if name != "t2d"}
    head = target.head() if weights.head is None else weights.head
    return VllmDrafter(
        EAGLE3, "eagle3", made, tensors, head, weights.vocab, _facts(target), config.notes
    )


def _language_model(source: DrafterCheckpoint, target: TargetFacts) -> VllmDrafter:
    where = _where(source)
    config = source.config
    architecture = next(iter(config.get("architectures") or ()), None)
    if architecture not in LANGUAGE_MODELS:
        raise DynaSpecError(
            f"{where}: dynaspec-vllm has no draft model of the architecture {architecture!r}; it "
            f"has {', '.join(LANGUAGE_MODELS)}"
        )
    if QUANTISED in config:
        raise DynaSpecError(f"{where}: its weights are quantised; give the original ones")
    if config.get("vocab_size") != target.vocab_size:
        raise DynaSpecError(
            f"{where}: vLLM asks for the target's vocabulary size, {target.vocab_size}, and this "
            f"model has {config.get('vocab_size')}; choose another one, or pad its rows"
        )
    names = ("lm_head.weight", "model.embed_tokens.weight")
    head = next((source.tensors[name] for name in names if name in source.tensors), None)
    if head is None:
        raise DynaSpecError(f"{where}: the weights lack {' and '.join(repr(n) for n in names)}")
    made = {**config, "architectures": [LANGUAGE_MODELS[architecture]]}
    return VllmDrafter(
        LANGUAGE_MODEL, "draft_model", made, dict(source.tensors), head, None, target={}
    )


def _published(
    source: DrafterCheckpoint, target: TargetFacts, options: Mapping[str, str], method: str
) -> tuple[HeadConfig, HeadWeights]:
    where = _where(source)
    config = read_head_config(source.config, options, method, where)
    check_target(config, target, where)
    return config, read_weights(config, source.tensors, where)


def _refuse(where: str, config: HeadConfig, weights: HeadWeights, *more: tuple[str, bool]) -> None:
    """What vLLM's Llama layers have no place for, all of it at once."""
    unfit = [
        name
        for name, present in (
            *more,
            (
                "norms of queries and keys",
                any(layer.q_norm is not None for layer in weights.layers),
            ),
            ("an activation other than silu", config.layer.activation != "silu"),
            ("an attention window", bool(config.layer.window)),
        )
        if present
    ]
    if unfit:
        raise DynaSpecError(f"{where}: vLLM's draft model cannot hold: {'; '.join(unfit)}")


def _biases(weights: HeadWeights) -> tuple[bool, bool]:
    first = weights.layers[0]
    return first.qkv_bias is not None, first.out_bias is not None


def _published_config(
    config: HeadConfig, weights: HeadWeights, target: TargetFacts
) -> dict[str, Any]:
    qkv, out = _biases(weights)
    shape = config.layer
    return {
        **_common(target, config.hidden_size, config.intermediate_size, len(weights.layers)),
        "hidden_act": "silu",
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.eps,
        "rope_theta": config.rope.theta,
        "rope_parameters": dict(config.rope.parameters),
        # vLLM's first word is of both, the second overrides it for q, k and v.
        "attention_bias": out,
        "qkv_bias": qkv,
        "mlp_bias": False,
    }


def _common(target: TargetFacts, hidden: int, inner: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": target.vocab_size,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "max_position_embeddings": int(target.config.get("max_position_embeddings", 2048)),
        "tie_word_embeddings": False,
        "bos_token_id": target.config.get("bos_token_id"),
        "eos_token_id": target.config.get("eos_token_id"),
    }


def _facts(target: TargetFacts) -> dict[str, Any]:
    """Of the target's config what a head that reads its hidden states must find again."""
    return {"hidden_size": target.hidden_size, "num_hidden_layers": target.num_layers}


def _tensors(source: DrafterCheckpoint, where: str) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in renamed(source.tensors, where).items()
        if not FREQUENCIES.fullmatch(name)
    }


def _where(source: DrafterCheckpoint) -> str:
    return f"export-vllm --drafter {source.source}"
