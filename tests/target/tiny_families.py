"""Tiny random models of every family that has native layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}


def randomise(model: Any) -> None:
    """Norm weights and biases start at constants: make them matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)


def _configs() -> dict[str, Any]:
    from transformers import (
        Gemma2Config,
        Gemma3TextConfig,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
    )

    window = {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    qwen_window = {**window, "use_sliding_window": True}
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return {
        "gemma2": Gemma2Config(
            **COMMON,
            sliding_window=8,
            num_hidden_layers=3,
            query_pre_attn_scalar=24,
            final_logit_softcapping=4.0,
            attn_logit_softcapping=2.0,
        ),
        "mistral": MistralConfig(
            **COMMON, num_hidden_layers=2, sliding_window=8, tie_word_embeddings=False
        ),
        "gemma3": Gemma3TextConfig(
            **COMMON,
            **window,
            num_hidden_layers=3,
            query_pre_attn_scalar=24,
            final_logit_softcapping=4.0,
        ),
        "llama": LlamaConfig(**COMMON, num_hidden_layers=2, tie_word_embeddings=False),
        "llama3": LlamaConfig(
            **COMMON, num_hidden_layers=2, rope_parameters=llama3, tie_word_embeddings=True
        ),
        "qwen2": Qwen2Config(
            **{**COMMON, "head_dim": 8},
            **qwen_window,
            num_hidden_layers=3,
            tie_word_embeddings=True,
        ),
        "qwen3": Qwen3Config(
            **COMMON, **qwen_window, num_hidden_layers=3, tie_word_embeddings=False
        ),
    }


FAMILIES = ("gemma3", "llama", "llama3", "qwen2", "qwen3", "gemma2", "mistral")


def save_family(family: str, folder: Path) -> None:
    """A tiny random model of a family in float32 (no tokenizer)."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(FAMILIES.index(family))
        model = AutoModelForCausalLM.from_config(_configs()[family])
        randomise(model)
    model.save_pretrained(folder)
