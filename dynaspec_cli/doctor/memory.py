"""Memory that a model needs, from its configuration and file headers alone: nothing is loaded."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.device.sizes import round_bytes
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.model import open_gguf
from dynaspec_cli.gguf_files.summary import summarise
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.gguf_tokenizer import file_pieces
from dynaspec_cli.target.packed_weights import FLOATS
from dynaspec_cli.target.static.sizes import extra_bytes
from dynaspec_cli.target.weights import weight_files
from dynaspec_cli.weights.pack import packs

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_HEADER_BYTES = 100 << 20
TOKEN_BYTES = 300
"""Of a tokenizer, for each entry of its vocabulary: spellings, both ways, and merges."""
PROGRAM_BYTES = 40 << 20
"""Code, modules and threads beyond what ``import torch`` takes."""
SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")


def safetensors_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes over the safetensors files of a folder that are read, from their headers.

    Raises ``DynaSpecError`` for a file that is none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > MAX_HEADER_BYTES:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
            shapes |= {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise DynaSpecError(f"{path}: no readable safetensors file ({error})") from error
    return shapes


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, with a text model's keys on top. Sizes that the file leaves to
    its family's defaults, or calls by other names (GPT-2), are taken from ``transformers``."""
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynaSpecError(f"{folder}: config.json cannot be read ({error})") from error
    found = {**data, **data.get("text_config", {})}
    if all(name in found for name in SIZES):
        return found
    from transformers import AutoConfig

    try:
        whole = AutoConfig.from_pretrained(folder).get_text_config()
        return found | {name: getattr(whole, name) for name in SIZES}
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DynaSpecError(f"{folder}: config.json does not tell its sizes ({reason})") from error


@dataclass(frozen=True)
class ModelSizes:
    """``weights``: numbers in all tensors; ``kv_width``: numbers that a token adds to the KV caches
    of all layers together. ``packed_bytes``: of a GGUF file's blocks as they are multiplied;
    ``other``: numbers in its tensors that have no packed form."""

    weights: int
    vocab_size: int
    hidden_size: int
    kv_width: int
    num_layers: int
    packed_bytes: int | None = None
    other: int = 0

    def weight_bytes(self, item: int, packed: bool) -> int:
        """In memory, where a number that is not packed has ``item`` bytes."""
        if packed and self.packed_bytes is not None:
            return self.packed_bytes + self.other * item
        return self.weights * item


def folder_sizes(folder: Path) -> ModelSizes:
    """Of a model folder, from config.json and the headers of its weights."""
    config = read_model_config(folder)
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    layers = int(config["num_hidden_layers"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    return ModelSizes(
        weights=sum(math.prod(shape) for shape in safetensors_shapes(folder).values()),
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        kv_width=2 * layers * kv_heads * head_dim,
        num_layers=layers,
    )


def gguf_sizes(source: Path | ChunkedFile) -> ModelSizes | int:
    """Of a GGUF file, from its header; the number of weights alone where that is all it tells."""
    model = open_gguf(file_pieces(source))
    found = summarise(model)
    vocabulary, hidden, width = found.vocab_size, found.hidden_size, found.kv_width
    if vocabulary is None or hidden is None or width is None or found.num_layers is None:
        return found.num_weights
    packed = other = 0
    for entry in model.tensors.entries():
        if entry.block_type in FLOATS or packs(entry.block_type, entry.columns) is not None:
            packed += entry.size
        else:
            other += entry.rows * entry.columns
    return ModelSizes(found.num_weights, vocabulary, hidden, width, found.num_layers, packed, other)


def estimate(
    sizes: ModelSizes,
    dtype: str,
    *,
    context: int,
    tree_size: int,
    drafter_bytes: int,
    reordered_head: bool,
    available: int | None,
    packed: bool = False,
    graphs: bool = False,
) -> dict[str, Any]:
    """Bytes by purpose for one request of ``context`` tokens, their sum, and the largest lever.

    ``reordered_head``: the shortlist keeps a copy of the LM head in its own order. ``packed``: a
    GGUF file's blocks are multiplied as they are. ``graphs``: the target's passes are captured
    (target/static/), with their activations and scratch rows, and so are a drafter's rounds.
    """
    item = ITEM_BYTES[dtype]
    head = sizes.vocab_size * sizes.hidden_size
    parts = {
        "weights": sizes.weight_bytes(item, packed),
        "kv_cache": sizes.kv_width * item * (context + tree_size + 1),
        "drafter": drafter_bytes,
        "shortlist_head": head * item if reordered_head else 0,
        "verification_logits": (tree_size + 1) * sizes.vocab_size * 4,
        "tokenizer": sizes.vocab_size * TOKEN_BYTES,
        "program": PROGRAM_BYTES,
    }
    if graphs:
        parts["graphs"] = extra_bytes(
            sizes.num_layers, sizes.hidden_size, sizes.kv_width, sizes.vocab_size, item
        )
        if drafter_bytes:
            parts["graphs"] += round_bytes(sizes.hidden_size, sizes.vocab_size, item)
    total = sum(parts.values())
    return {
        "dtype": f"packed ({dtype} beside)" if packed else dtype,
        "context": context,
        "parts_bytes": parts,
        "total_bytes": total,
        "available_bytes": available,
        "fits": None if available is None else total <= available,
        "largest_lever": _lever(parts, dtype),
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "head_share_of_weights": head / sizes.weights if sizes.weights else None,
    }


def weights_alone(weights: int, dtype: str, available: int | None) -> dict[str, Any]:
    """Where a file tells no more than that: enough to say that it does not fit, never that it
    does."""
    needed = weights * ITEM_BYTES[dtype]
    return {
        "dtype": dtype,
        "parts_bytes": {"weights": needed},
        "total_bytes": None,
        "available_bytes": available,
        "fits": False if available is not None and needed > available else None,
    }


def _lever(parts: dict[str, int], dtype: str) -> str:
    """Of what a user can change."""
    largest = max(set(parts) - {"tokenizer", "program"}, key=lambda name: parts[name])
    if largest == "weights":
        smaller = "--dtype bfloat16 halves them" if dtype == "float32" else "a smaller --model"
        return f"the weights: {smaller}"
    return {
        "kv_cache": "the KV cache: a shorter prompt or --max-new-tokens",
        "drafter": "the drafter: a smaller one",
        "shortlist_head": "the reordered head: --shortlist nanospec shares the target's",
        "verification_logits": "the logits of a verification: a smaller --tree-size",
        "graphs": "the passes' graphs and activations: a smaller --model",
    }[largest]
