"""Writes a tiny random Llama as a GGUF file, so that no test needs a real model."""

from __future__ import annotations

from pathlib import Path

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, INNER = 300, 32, 2, 4, 2, 48


def write_tiny_gguf(path: Path, seed: int = 0, quantised: bool = False) -> None:
    """Float32 weights, or Q8_0 blocks where rows are whole ones; a byte-level tokenizer with a few
    merges, BOS 0, EOS 1, context 128."""
    import gguf
    import numpy as np
    from tokenizers import pre_tokenizers

    random = np.random.default_rng(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [letter for letter in alphabet if letter != "Ġ"][: VOCAB - 2 - len(alphabet)]
    tokens = ["<s>", "</s>", *alphabet, *(f"Ġ{letter}" for letter in merged)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (VOCAB - 2))
    writer.add_token_merges([f"Ġ {letter}" for letter in merged])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name: str, *shape: int) -> None:
        values = (random.standard_normal(shape) * 0.3).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantised and shape[-1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    add("token_embd.weight", VOCAB, WIDTH)
    add("output.weight", VOCAB, WIDTH)
    ones("output_norm.weight")
    kv = WIDTH // HEADS * KV_HEADS
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight")
        ones(block + "ffn_norm.weight")
        add(block + "attn_q.weight", WIDTH, WIDTH)
        add(block + "attn_k.weight", kv, WIDTH)
        add(block + "attn_v.weight", kv, WIDTH)
        add(block + "attn_output.weight", WIDTH, WIDTH)
        add(block + "ffn_gate.weight", INNER, WIDTH)
        add(block + "ffn_up.weight", INNER, WIDTH)
        add(block + "ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
