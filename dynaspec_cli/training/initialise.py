"""A drafter that starts from its target: config, and layers copied from the target's last ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.training.model import DrafterModule

NEXT_TOKEN_GAIN = 0.3
"""Initial weight of the new token's (unit) embedding against the (unit) feature; found by trial,
training corrects it."""


def drafter_config(
    target: Any, num_layers: int, feature_scale: float, for_vllm: bool = False
) -> DrafterConfig:
    """Shape of a drafter whose layers are like the target's last ones; ``for_vllm``: of what vLLM's
    runner passes, features after the final norm and one token.

    target: a ``TransformersTarget``. Raises DynaSpecError for families whose layers differ from the
    four that are supported.
    """
    config = target.model.config.get_text_config()
    if num_layers > len(_layers(target)):
        raise UsageError(
            f"--layers: expected at most the {len(_layers(target))} of {target.name}, which they "
            f"are copies of, got {num_layers}"
        )
    layer = _layers(target)[-1]
    attention, mlp = layer.self_attn, layer.mlp
    for owner, name in (
        (attention, "q_proj"),
        (attention, "o_proj"),
        (mlp, "gate_proj"),
        (mlp, "down_proj"),
    ):
        if not hasattr(owner, name):
            raise DynaSpecError(
                f"train-drafter: {target.name} ({config.model_type}) has layers without {name}; "
                "supported: Gemma 3, Llama, Qwen2, Qwen3"
            )
    width = int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "silu")
    return DrafterConfig(
        target_name=target.name,
        head_hash=target.head_hash(),
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        num_layers=num_layers,
        num_heads=int(config.num_attention_heads),
        num_kv_heads=int(config.num_key_value_heads),
        head_dim=width,
        intermediate_size=int(config.intermediate_size),
        activation="silu" if activation == "silu" else "gelu_tanh",
        eps=float(config.rms_norm_eps),
        attention_scale=float(attention.scaling),
        rope_theta=_rope_theta(config),
        window=0,
        feature_scale=feature_scale,
        has_qk_norm=hasattr(attention, "q_norm"),
        has_qkv_bias=attention.q_proj.bias is not None,
        has_post_norms=hasattr(layer, "post_feedforward_layernorm"),
        use_current_token=not for_vllm,
        normed_features=for_vllm,
    )


@torch.no_grad()
def from_target(config: DrafterConfig, target: Any) -> DrafterModule:
    """A module whose layers are the target's last ``num_layers``, in units of ``feature_scale``."""
    module = DrafterModule(config)
    d = config.hidden_size
    final = norm_weight(target.backbone.norm)
    if config.normed_features:
        # The gate takes the norm's factor off again, as far as it is no division by nearly zero:
        # the layers find the residual stream that they are copies of readers of.
        module.gate.copy_(final / (final.square() + (0.05 * final.mean()) ** 2))
    else:
        module.gate.fill_(1.0)
        module.feature_norm.copy_(final / final.mean())
    module.fc[:, d : 2 * d] = torch.eye(d) * NEXT_TOKEN_GAIN
    for ours, theirs in zip(module.layers, _layers(target)[-config.num_layers :], strict=True):
        _copy_layer(ours, theirs, config)
    return module


def _copy_layer(ours: Any, theirs: Any, config: DrafterConfig) -> None:
    """The tensors of ops.layer.LAYER_WEIGHTS from a ``transformers`` decoder layer."""
    attention, mlp = theirs.self_attn, theirs.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    ours.input_norm.copy_(norm_weight(theirs.input_layernorm))
    ours.qkv.copy_(torch.cat([p.weight.float() for p in projections]))
    ours.out.copy_(attention.o_proj.weight.float())
    ours.gate_up.copy_(torch.cat([mlp.gate_proj.weight.float(), mlp.up_proj.weight.float()]))
    ours.down.copy_(mlp.down_proj.weight.float())
    if config.has_qkv_bias:
        ours.qkv_bias.copy_(torch.cat([p.bias.float() for p in projections]))
    if config.has_qk_norm:
        ours.q_norm.copy_(norm_weight(attention.q_norm))
        ours.k_norm.copy_(norm_weight(attention.k_norm))
    if config.has_post_norms:
        # These norms set the size of what a layer adds to the stream, so they carry its unit.
        ours.mlp_norm.copy_(norm_weight(theirs.pre_feedforward_layernorm))
        ours.post_attention_norm.copy_(
            norm_weight(theirs.post_attention_layernorm) / config.feature_scale
        )
        ours.post_mlp_norm.copy_(
            norm_weight(theirs.post_feedforward_layernorm) / config.feature_scale
        )
    else:
        ours.mlp_norm.copy_(norm_weight(theirs.post_attention_layernorm))
        ours.out /= config.feature_scale
        ours.down /= config.feature_scale


def norm_weight(norm: Any) -> Tensor:
    """The factor an RMS norm applies, float32 [d]: Gemma stores it less one."""
    weight: Tensor = norm.weight.detach().float().cpu()
    return weight + 1 if "Gemma" in type(norm).__name__ else weight


def _layers(target: Any) -> Any:
    layers = getattr(target.backbone.stack, "layers", None)
    if layers is None:
        raise DynaSpecError(
            f"train-drafter: {target.name} keeps no list of decoder layers; supported: Gemma 3, "
            "Llama, Qwen2, Qwen3"
        )
    return layers


def _rope_theta(config: Any) -> float:
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0))
