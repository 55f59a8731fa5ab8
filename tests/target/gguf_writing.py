"""Writes models of ``transformers`` as GGUF files, in llama.cpp's form, so that no test needs a
real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = {
    **NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}

Arrays = dict[str, np.ndarray]


def file_arrays(model: Any) -> tuple[str, Arrays]:
    """(architecture, tensors by the file's names) of a ``transformers`` model."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    gemma = architecture.startswith("gemma")
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    out: Arrays = {}
    for name, tensor in model.state_dict().items():
        value = tensor.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name in OUTER:
            file = OUTER[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            stem, _, kind = rest.rpartition(".")
            file = f"blk.{layer}.{(GEMMA_NAMES if gemma else NAMES)[stem]}.{kind}"
        if gemma and name.endswith("norm.weight"):
            value = value + 1
        letter = file.split("attn_")[-1][0] if "attn_" in file else ""
        if architecture == "llama" and letter in "qk" and file.count("attn_" + letter + "."):
            value = interleaved(value, heads[letter])
        out[file] = value
    return architecture, out


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k in the order of the interleaved rotary form."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def file_keys(model: Any) -> dict[str, Any]:
    """The architecture's keys, without its prefix."""
    c = model.config
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    keys: dict[str, Any] = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "attention.key_length": c.head_dim if c.model_type != "qwen2" else 8,
        "attention.value_length": c.head_dim if c.model_type != "qwen2" else 8,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    return keys


Editor = Callable[[dict[str, Any], Arrays], None]


def write_gguf(
    path: Path,
    model: Any,
    edit: Editor | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    **writer_options: Any,
) -> Path:
    """Write ``model``; ``edit`` may change the keys (whole names) and the tensors before."""
    architecture, arrays = file_arrays(model)
    keys: dict[str, Any] = {f"{architecture}.{k}": v for k, v in file_keys(model).items()}
    vocab = model.config.vocab_size
    keys |= dict(byte_level_keys(vocab) if tokenizer is None else tokenizer)
    if edit is not None:
        edit(keys, arrays)
    write_raw(path, architecture, keys, arrays, **writer_options)
    return path


def byte_level_keys(vocab: int) -> dict[str, Any]:
    """Two special tokens, letters of the byte alphabet, and one merge."""
    letters = [chr(0x21 + i) for i in range(vocab - 3)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "</s>", *letters, "ab"],
        "tokenizer.ggml.token_type": [3, 3] + [1] * (vocab - 2),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def write_raw(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    arrays: Mapping[str, Any],
    **writer_options: Any,
) -> None:
    """Keys by their values' kinds; an array may be (block type, uint8 rows of blocks)."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture, **writer_options)
    for key, value in keys.items():
        add_value(writer, key, value)
    for name, value in arrays.items():
        if isinstance(value, tuple):
            kind, blocks = value
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def quantised(rows: np.ndarray, kind: str) -> tuple[str, np.ndarray]:
    """Rows as blocks of ``kind``."""
    import gguf

    return kind, gguf.quants.quantize(
        np.ascontiguousarray(rows, np.float32), gguf.GGMLQuantizationType[kind]
    )
