"""Which tensors an architecture's file holds, and what they are called elsewhere in this program
(the names of ``transformers``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.tensors import GgufTensors

ROPE_FACTORS = "rope_freqs.weight"
QK_NORM = ("qwen3", "gemma3")
POST_NORMS = ("gemma2", "gemma3")
INTERLEAVED_ROPE = ("llama",)


@dataclass(frozen=True)
class Slot:
    """``file``: the tensor's name in the file; ``shape`` (rows, columns) that it must have, a
    vector being one row. ``turned_heads``: heads whose rows lie in the order of the interleaved
    rotary form (0: none)."""

    file: str
    shape: tuple[int, int]
    turned_heads: int = 0

    def row_order(self) -> NDArray[np.int64] | None:
        """Rows of the file in the order of the ``rotate_half`` form; None: as they are.

        The interleaved form turns values 2i and 2i + 1 of a head together, ours i and i + half.
        """
        count = self.shape[0] if self.shape[0] > 1 else self.shape[1]
        if not self.turned_heads:
            return None
        order = np.arange(count).reshape(self.turned_heads, -1, 2)
        return order.transpose(0, 2, 1).reshape(-1)


def slots(architecture: str, config: dict[str, Any]) -> dict[str, Slot]:
    """All tensors of the model by our name, as ``config`` (keys of ``transformers``) says."""
    d, vocabulary = int(config["hidden_size"]), int(config["vocab_size"])
    found = {
        "model.embed_tokens.weight": Slot("token_embd.weight", (vocabulary, d)),
        "model.norm.weight": Slot("output_norm.weight", (1, d)),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = Slot("output.weight", (vocabulary, d))
    for index in range(int(config["num_hidden_layers"])):
        for ours, slot in _layer(architecture, config):
            file = f"blk.{index}.{slot.file}"
            found[f"model.layers.{index}.{ours}"] = Slot(file, slot.shape, slot.turned_heads)
    return found


def _layer(architecture: str, config: dict[str, Any]) -> Iterator[tuple[str, Slot]]:
    d, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    size = int(config["head_dim"])
    for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        turned = count if architecture in INTERLEAVED_ROPE and letter != "v" else 0
        name, rows = f"self_attn.{letter}_proj", count * size
        yield f"{name}.weight", Slot(f"attn_{letter}.weight", (rows, d), turned)
        if config["attention_bias"]:
            yield f"{name}.bias", Slot(f"attn_{letter}.bias", (1, rows), turned)
    yield "self_attn.o_proj.weight", Slot("attn_output.weight", (d, heads * size))
    if architecture in QK_NORM:
        yield "self_attn.q_norm.weight", Slot("attn_q_norm.weight", (1, size))
        yield "self_attn.k_norm.weight", Slot("attn_k_norm.weight", (1, size))
    yield "mlp.gate_proj.weight", Slot("ffn_gate.weight", (inner, d))
    yield "mlp.up_proj.weight", Slot("ffn_up.weight", (inner, d))
    yield "mlp.down_proj.weight", Slot("ffn_down.weight", (d, inner))
    yield "input_layernorm.weight", Slot("attn_norm.weight", (1, d))
    if architecture in POST_NORMS:
        yield "post_attention_layernorm.weight", Slot("post_attention_norm.weight", (1, d))
        yield "pre_feedforward_layernorm.weight", Slot("ffn_norm.weight", (1, d))
        yield "post_feedforward_layernorm.weight", Slot("post_ffw_norm.weight", (1, d))
    else:
        yield "post_attention_layernorm.weight", Slot("ffn_norm.weight", (1, d))


def check_tensors(tensors: GgufTensors, wanted: dict[str, Slot], used: set[str]) -> None:
    """Raises ``DynaSpecError`` for a tensor that is missing, one of another shape, and one that
    the model's layers would not use (``used``: names that were read apart)."""
    names = {slot.file for slot in wanted.values()}
    if missing := [slot.file for slot in wanted.values() if slot.file not in tensors]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DynaSpecError(
            f"{tensors.place}: the file lacks tensor {missing[0]!r}{more}; it is incomplete: "
            "download or convert it again"
        )
    if extra := [name for name in tensors if name not in names and name not in used]:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise DynaSpecError(
            f"{tensors.place}: the file holds tensor {extra[0]!r}{more}, which these layers do not "
            "use; the model is of another make and would give wrong text"
        )
    for slot in wanted.values():
        shape = tensors.shape(slot.file)
        if shape != slot.shape:
            raise DynaSpecError(
                f"{tensors.place}: tensor {slot.file!r} has shape {list(shape)}, but the file's "
                f"keys ask for {list(slot.shape)}"
            )
