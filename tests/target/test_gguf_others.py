"""Architectures without native layers go by ``transformers``, which must take every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_writing import Arrays, write_raw
from test_gguf_tokenizer import byte_level

from dynaspec_cli.errors import DynaSpecError

WIDTH, LAYERS, INNER = 32, 2, 64


def starcoder2(path: Path, edit: Any = None) -> tuple[Path, Arrays]:
    """A tiny StarCoder 2: layer norms and biases, which no native layer has."""
    keys = byte_level("starcoder")
    vocab = len(keys["tokenizer.ggml.tokens"])
    random = np.random.default_rng(0)
    sizes = {
        "block_count": LAYERS,
        "context_length": 64,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_epsilon": 1e-5,
    }
    keys |= {f"starcoder2.{name}": value for name, value in sizes.items()}
    arrays: Arrays = {}

    def both(name: str, rows: int, columns: int | None = None) -> None:
        shape = (rows,) if columns is None else (rows, columns)
        arrays[f"{name}.weight"] = (random.standard_normal(shape) * 0.3).astype(np.float32)
        arrays[f"{name}.bias"] = (random.standard_normal(rows) * 0.1).astype(np.float32)

    arrays["token_embd.weight"] = random.standard_normal((vocab, WIDTH)).astype(np.float32)
    both("output_norm", WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        both(f"{block}attn_norm", WIDTH)
        both(f"{block}ffn_norm", WIDTH)
        both(f"{block}attn_q", WIDTH, WIDTH)
        both(f"{block}attn_k", WIDTH // 2, WIDTH)
        both(f"{block}attn_v", WIDTH // 2, WIDTH)
        both(f"{block}attn_output", WIDTH, WIDTH)
        both(f"{block}ffn_up", INNER, WIDTH)
        both(f"{block}ffn_down", WIDTH, INNER)
    if edit is not None:
        edit(keys, arrays)
    write_raw(path, "starcoder2", keys, arrays)
    return path, arrays


def test_a_file_by_transformers(tmp_path: Path, cache_dir: Path) -> None:
    from dynaspec_cli.target.load import load

    path, arrays = starcoder2(tmp_path / "m.gguf")
    target, tokenizer = load(str(path), "float32", "cpu")
    assert target.kernels.startswith("transformers")  # type: ignore[attr-defined]
    head = target.head_weight().data  # type: ignore[attr-defined]
    assert torch.equal(head, torch.from_numpy(arrays["token_embd.weight"]))
    assert tokenizer.decode(tokenizer.encode("ok 12")) == "ok 12"


def extra(keys: dict[str, Any], arrays: Arrays) -> None:
    arrays["blk.0.ffn_gate.weight"] = np.ones((INNER, WIDTH), np.float32)


def missing(keys: dict[str, Any], arrays: Arrays) -> None:
    del arrays["blk.1.ffn_down.weight"]


@pytest.mark.parametrize("edit", [extra, missing])
def test_what_transformers_would_leave_out(edit: Any, tmp_path: Path, cache_dir: Path) -> None:
    from dynaspec_cli.target.load import load

    path, _ = starcoder2(tmp_path / "m.gguf", edit)
    with pytest.raises(DynaSpecError, match=r"would give (wrong|random) text") as caught:
        load(str(path), "float32", "cpu")
    assert "\n" not in str(caught.value)
    assert [p for p in (cache_dir / "models").iterdir() if p.is_dir()] == []
