"""A small Llama as a GGUF file of 8-bit blocks: half its size, and llama.cpp loads it too.

    python examples/lm_drafter_to_gguf.py small-lm SMOLLM2.gguf small-lm.gguf
    dynaspec generate --model SMOLLM2.gguf --drafter small-lm.gguf "..."

The tokenizer is copied from the target's GGUF file. Matrices become Q8_0 (blocks of 32 weights with
one scale), norms stay float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """ "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *rest = name.removesuffix(".weight").split(".")
    return f"blk.{layer}.{LAYER_NAMES['.'.join(rest)]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order of llama.cpp's rotation, which turns neighbours where
    transformers turns the two halves of a head."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: lm_drafter_to_gguf.py FOLDER TARGET.gguf OUT.gguf")
    folder, target, out = (Path(argument) for argument in sys.argv[1:])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        sys.exit(f"{folder}: expected a llama, got {config['model_type']}")
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    for key, field in gguf.GGUFReader(target).fields.items():
        if key.startswith("tokenizer."):
            kinds = field.types
            inner = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kinds[0], inner)
    for name, tensor in load_file(folder / "model.safetensors").items():
        weight = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved(weight, heads if "q_proj" in name else kv_heads)
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(out)


if __name__ == "__main__":
    main()
