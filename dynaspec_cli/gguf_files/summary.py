"""A first look at a GGUF file: is it whole, how many weights does it hold, and which shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaspec_cli.gguf_files.header import Value
from dynaspec_cli.gguf_files.model import GgufModel

EMBEDDINGS = "token_embd.weight"


@dataclass(frozen=True)
class GgufSummary:
    """``num_weights`` over all tensors, ``tensor_bytes`` of their data. ``kv_width``: numbers that
    a token adds to the KV caches of all layers together. The sizes are None where the file does
    not tell them under the usual names."""

    architecture: str
    num_weights: int
    tensor_bytes: int
    vocab_size: int | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    kv_width: int | None = None


def summarise(model: GgufModel) -> GgufSummary:
    """The sizes of a model of any architecture, from its keys and its table of tensors."""
    keys, tensors = model.keys, model.tensors
    vocabulary, hidden = tensors.shape(EMBEDDINGS) if EMBEDDINGS in tensors else (None, None)
    return GgufSummary(
        model.architecture,
        tensors.num_values,
        tensors.num_bytes,
        vocabulary,
        hidden,
        num_layers=_integer(keys.get(f"{model.architecture}.block_count")),
        kv_width=_kv_width(keys, model.architecture),
    )


def _integer(value: Value | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _kv_width(keys: dict[str, Value], architecture: str) -> int | None:
    """Keys and values of one token over all layers. Head counts are one number, or one a layer."""
    prefix = f"{architecture}.attention."
    layers = _integer(keys.get(f"{architecture}.block_count"))
    heads = keys.get(f"{prefix}head_count")
    kv_heads = keys.get(f"{prefix}head_count_kv", heads)
    if layers is None or kv_heads is None:
        return None
    counts = kv_heads.tolist() if isinstance(kv_heads, np.ndarray) else [kv_heads] * layers
    if len(counts) != layers or not all(isinstance(count, int) for count in counts):
        return None
    width = _integer(keys.get(f"{architecture}.embedding_length"))
    usual = width // heads if width and isinstance(heads, int) and heads else None
    key = _integer(keys.get(f"{prefix}key_length")) or usual
    value = _integer(keys.get(f"{prefix}value_length")) or usual
    return None if key is None or value is None else sum(counts) * (key + value)
