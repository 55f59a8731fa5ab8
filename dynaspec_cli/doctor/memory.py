"""Memory that a model needs, from its configuration and file headers alone: nothing is loaded."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.gguf_file import inspect_gguf
from dynaspec_cli.target.resolve import ModelSource

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_HEADER_BYTES = 100 << 20
SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")


def safetensors_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes over all safetensors files of a folder, from their headers.

    Raises ``DynaSpecError`` for a file that is none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
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


def estimate(
    folder: Path,
    dtype: str,
    *,
    context: int,
    tree_size: int,
    drafter_bytes: int,
    reordered_head: bool,
    available: int | None,
) -> dict[str, Any]:
    """Bytes by purpose for one request of ``context`` tokens, their sum, and the largest lever.

    ``reordered_head``: the shortlist keeps a copy of the LM head in its own order.
    """
    config = read_model_config(folder)
    item = ITEM_BYTES[dtype]
    weights = sum(math.prod(shape) for shape in safetensors_shapes(folder).values())
    vocabulary, hidden = int(config["vocab_size"]), int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    layers = int(config["num_hidden_layers"])
    parts = {
        "weights": weights * item,
        "kv_cache": 2 * layers * kv_heads * head_dim * item * (context + tree_size + 1),
        "drafter": drafter_bytes,
        "shortlist_head": vocabulary * hidden * item if reordered_head else 0,
        "verification_logits": (tree_size + 1) * vocabulary * 4,
    }
    total = sum(parts.values())
    return {
        "dtype": dtype,
        "context": context,
        "parts_bytes": parts,
        "total_bytes": total,
        "available_bytes": available,
        "fits": None if available is None else total <= available,
        "largest_lever": _lever(parts, dtype),
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "head_share_of_weights": vocabulary * hidden / weights if weights else None,
    }


def _lever(parts: dict[str, int], dtype: str) -> str:
    largest = max(parts, key=lambda name: parts[name])
    if largest == "weights":
        smaller = "--dtype bfloat16 halves them" if dtype == "float32" else "a smaller --model"
        return f"the weights: {smaller}"
    return {
        "kv_cache": "the KV cache: a shorter prompt or --max-new-tokens",
        "drafter": "the drafter: a smaller one",
        "shortlist_head": "the reordered head: --shortlist nanospec shares the target's",
        "verification_logits": "the logits of a verification: a smaller --tree-size",
    }[largest]


def gguf_estimate(source: ModelSource, dtype: str, available: int | None) -> dict[str, Any]:
    """For a GGUF file that was not converted yet: weights and the disk space of the conversion."""
    gguf = source.gguf
    if gguf is None:
        raise DynaSpecError(f"{source.name}: no GGUF file")
    if isinstance(gguf, ChunkedFile):
        return {
            "dtype": dtype,
            "gguf_bytes": gguf.size,
            "note": "not converted yet; the first dynaspec generate converts it",
        }
    weights = inspect_gguf(gguf).num_weights * ITEM_BYTES[dtype]
    return {
        "dtype": dtype,
        "gguf_bytes": gguf.stat().st_size,
        "parts_bytes": {"weights": weights},
        "total_bytes": weights,
        "available_bytes": available,
        "fits": None if available is None else weights <= available,
        "cache_bytes_needed": weights,
        "note": "not converted yet; the first dynaspec generate converts it",
    }
