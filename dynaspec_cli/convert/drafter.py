"""Between the forms of a drafter's checkpoint. Weights keep every bit; names and config change.

What a form cannot hold is refused by name, all of it at once. EAGLE-3 heads exist in EAGLE's
folders and in those of the speculators library; EAGLE-1 heads in EAGLE's alone; a drafter of
train-drafter in this project's alone, since it computes what neither has a form for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dynaspec_cli.drafters.checkpoint import DrafterCheckpoint
from dynaspec_cli.drafters.config import FORMAT
from dynaspec_cli.drafters.published import (
    EAGLE1,
    EAGLE3,
    SPECULATORS,
    HeadConfig,
    read_head_config,
)
from dynaspec_cli.drafters.published_taps import KEY
from dynaspec_cli.drafters.published_weights import HeadWeights, canonical, read_weights
from dynaspec_cli.errors import DynaSpecError

EAGLE_TAPS = 3
LAYER_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "max_position_embeddings",
)
"""Of the layers' config: facts that change no number and go along."""
OWN_PARTS = (
    "a gate that passes the feature on",
    "norms of the feature and the embeddings before fc",
    "a norm before the first attention",
)
"""What train-drafter's form computes and EAGLE-1's has no place for."""


def convert(
    source: DrafterCheckpoint, to: str, options: dict[str, str] | None = None
) -> tuple[DrafterCheckpoint, tuple[str, ...]]:
    """(``source`` in the form ``to``: "eagle", "speculators" or "dynaspec"; notes for the user).
    ``options``: --drafter-option, for what the source's files leave open. Raises DynaSpecError for
    what the form cannot hold."""
    where = f"convert {source.source}"
    if to == "dynaspec":
        if source.kind != FORMAT:
            raise _cannot(where, source.kind, "this project's own form", (_no_own_form(source),))
        return source, ()
    if source.kind == FORMAT:
        parts: tuple[str, ...] = OWN_PARTS
        if not source.config.get("normed_features", False):
            parts += ("features before the target's final norm",)
        if source.config.get("use_current_token", True):
            parts += ("the embedding of the current token",)
        for key, name in (
            ("has_post_norms", "norms after attention and MLP"),
            ("window", "an attention window"),
            ("has_qk_norm", "norms of queries and keys"),
        ):
            parts += (name,) if source.config.get(key) else ()
        raise _cannot(where, FORMAT, f"{to}'s form", parts)
    method = EAGLE1 if source.kind == EAGLE1 else EAGLE3
    config = read_head_config(source.config, options or {}, method, where)
    weights = read_weights(config, source.tensors, where)
    if to == "eagle":
        made = source if source.kind != SPECULATORS else _to_eagle(source, config, weights, where)
    else:
        made = (
            source
            if source.kind == SPECULATORS
            else _to_speculators(source, config, weights, where)
        )
    return replace(made, card=_card(source, made)), config.notes


def _to_speculators(
    source: DrafterCheckpoint, config: HeadConfig, weights: HeadWeights, where: str
) -> DrafterCheckpoint:
    if config.method == EAGLE1:
        raise _cannot(
            where, EAGLE1, "a speculators folder", ("EAGLE-1 (the library removed it in 2025)",)
        )
    unfit = []
    if config.rope.parameters["rope_type"] == "dynamic":
        unfit.append("dynamic rotary scaling")
    if len({layer.out_bias is None for layer in weights.layers}) > 1:
        unfit.append("layers of which some have biases")
    biased = weights.layers[0].qkv_bias is not None
    if biased and weights.layers[0].out_bias is None:
        unfit.append("biases of q, k and v without one of o")
    if unfit:
        raise _cannot(where, source.kind, "a speculators folder", tuple(unfit))
    layer = _layer_config(source.config, config, weights)
    layer |= {
        "attention_bias": biased,
        "mlp_bias": False,
        "rope_parameters": dict(config.rope.parameters),
    }
    taps = config.taps.layers
    made = {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": config.draft_vocab_size or config.vocab_size,
        KEY: None if taps is None else list(taps),
        "embed_requires_grad": False,
        "fc_norm": config.fc_norm,
        "norm_before_fc": config.norm_before_fc,
        "norm_before_residual": config.norm_before_residual,
        "norm_output": config.norm_output,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "accept_tolerance": 0.0,
                    "proposal_type": "greedy",
                    "speculative_tokens": 5,
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {"architectures": [], "name_or_path": None},
        },
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "target_hidden_size": _narrow(config),
        "tie_word_embeddings": bool(config.tie) and weights.head is None,
        "transformer_layer_config": layer,
    }
    tensors = {canonical(name): tensor for name, tensor in source.tensors.items()}
    return replace(source, kind=SPECULATORS, config=made, tensors=tensors)


def _to_eagle(
    source: DrafterCheckpoint, config: HeadConfig, weights: HeadWeights, where: str
) -> DrafterCheckpoint:
    first = weights.layers[0]
    taps = config.taps.layers
    columns = weights.fc.shape[1] // config.target_hidden_size
    unfit = [
        name
        for name, present in (
            ("norm_before_residual", config.norm_before_residual),
            ("norm_before_fc", config.norm_before_fc),
            ("fc_norm", config.fc_norm),
            ("norm_output", config.norm_output),
            (f"{len(weights.layers)} layers (it has one)", len(weights.layers) > 1),
            ("biases of the attention", first.qkv_bias is not None or first.out_bias is not None),
            ("norms of queries and keys", first.q_norm is not None),
            (f"{columns} hidden states of the target (it reads three)", columns != EAGLE_TAPS),
            (
                f"hidden states of layers {list(taps or ())}, whose list would read as other "
                "layers (unambiguous ones begin with 2)",
                taps is not None and taps[0] != 2,
            ),
            ("tied word embeddings", bool(config.tie) and weights.head is None),
        )
        if present
    ]
    if unfit:
        raise _cannot(where, source.kind, "an EAGLE folder", tuple(unfit))
    rope = dict(config.rope.parameters)
    theta, kind = rope.pop("rope_theta"), rope.get("rope_type", "default")
    made = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **_layer_config(source.config["transformer_layer_config"], config, weights),
        "draft_vocab_size": config.draft_vocab_size or config.vocab_size,
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else rope,
        "tie_word_embeddings": False,
    }
    if taps is not None:
        made["eagle_config"] = {KEY: list(taps), "use_aux_hidden_state": True}
    if _narrow(config) is not None:
        made["target_hidden_size"] = config.target_hidden_size
    tensors = {_eagle_name(canonical(name)): t for name, t in source.tensors.items()}
    return replace(source, kind=EAGLE3, config=made, tensors=tensors)


def _eagle_name(name: str) -> str:
    first = "layers.0."
    return "midlayer." + name.removeprefix(first) if name.startswith(first) else name


def _layer_config(
    layer: dict[str, Any], config: HeadConfig, weights: HeadWeights
) -> dict[str, Any]:
    """Of the decoder layers, everything said that a reader might fill in otherwise."""
    shape = config.layer
    return {
        **{key: layer[key] for key in LAYER_KEYS if key in layer},
        "head_dim": shape.head_dim,
        "hidden_act": "silu" if shape.activation == "silu" else "gelu_pytorch_tanh",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "model_type": "llama" if weights.layers[0].q_norm is None else "qwen3",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": len(weights.layers),
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.eps,
        "vocab_size": config.vocab_size,
    }


def _narrow(config: HeadConfig) -> int | None:
    same = config.target_hidden_size == config.hidden_size
    return None if same else config.target_hidden_size


def _no_own_form(source: DrafterCheckpoint) -> str:
    return f"what a {source.kind} head computes (dynaspec loads such a folder as it is)"


def _cannot(where: str, kind: str, form: str, parts: tuple[str, ...]) -> DynaSpecError:
    return DynaSpecError(f"{where}: {form} cannot hold, of this {kind} drafter: {'; '.join(parts)}")


def _card(source: DrafterCheckpoint, made: DrafterCheckpoint) -> str | None:
    """The author's card goes along, with a line on what was done to it."""
    if source.card is None or made.kind == source.kind:
        return source.card
    return f"{source.card.rstrip()}\n\nConverted from {source.kind} to {made.kind} by dynaspec.\n"
