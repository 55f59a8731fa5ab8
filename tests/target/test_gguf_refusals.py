"""What a GGUF file holds is used, or the file is refused by its name, in one line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_writing import Arrays, quantised, write_gguf
from tiny_families import COMMON

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.gguf_native import open_native
from dynaspec_cli.target.native_weights import read_weights

Edit = Callable[[dict[str, Any], Arrays], None]


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            LlamaConfig(**COMMON, num_hidden_layers=2, tie_word_embeddings=True)
        )


def refused(path: Path, message: str) -> None:
    with pytest.raises(DynaSpecError, match=message) as caught:
        open_native(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def key(name: str, value: Any) -> Edit:
    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        keys[name] = value

    return edit


def without_key(name: str) -> Edit:
    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        del keys[name]

    return edit


def tensor(name: str, *shape: int) -> Edit:
    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        arrays[name] = np.ones(shape, np.float32)

    return edit


def without_tensor(name: str) -> Edit:
    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        del arrays[name]

    return edit


REFUSED: dict[str, tuple[Edit, str]] = {
    "mixture of experts": (
        key("llama.expert_count", 8),
        r"llama\.expert_count is 8: a mixture of experts",
    ),
    "experts' tensors": (
        tensor("blk.0.ffn_gate_exps.weight", 4, 48, 32),
        r"holds tensor 'blk\.0\.ffn_gate_exps\.weight'",
    ),
    "bias of the output": (
        tensor("blk.1.attn_output.bias", 32),
        r"holds tensor 'blk\.1\.attn_output\.bias'",
    ),
    "bias of the mlp": (tensor("blk.0.ffn_up.bias", 48), r"holds tensor 'blk\.0\.ffn_up\.bias'"),
    "bias in one layer": (
        tensor("blk.0.attn_q.bias", 64),
        r"lacks tensor 'blk\.0\.attn_k\.bias' and 4 more",
    ),
    "head norms": (
        tensor("blk.0.attn_q_norm.weight", 16),
        r"holds tensor 'blk\.0\.attn_q_norm\.weight'",
    ),
    "missing tensor": (
        without_tensor("blk.1.ffn_down.weight"),
        r"lacks tensor 'blk\.1\.ffn_down\.weight'; it is incomplete",
    ),
    "missing embeddings": (
        without_tensor("token_embd.weight"),
        r"lacks tensor 'token_embd\.weight'",
    ),
    "other shape": (
        tensor("blk.1.ffn_down.weight", 32, 47),
        r"'blk\.1\.ffn_down\.weight' has shape \[32, 47\], .* ask for \[32, 48\]",
    ),
    "more layers than told": (key("llama.block_count", 1), r"holds tensor 'blk\.1\."),
    "unknown key": (
        key("llama.attention.sinks", 4),
        r"llama\.attention\.sinks is 4, which changes",
    ),
    "logit scale": (key("llama.logit_scale", 0.5), r"llama\.logit_scale is 0\.5, which changes"),
    "not causal": (key("llama.attention.causal", False), r"llama\.attention\.causal is False"),
    "other attention scale": (
        key("llama.attention.scale", 0.5),
        r"llama\.attention\.scale is 0\.5, expected 0\.25",
    ),
    "partial rotation": (
        key("llama.rope.dimension_count", 8),
        r"llama\.rope\.dimension_count is 8, expected the head's size 16",
    ),
    "value length": (
        key("llama.attention.value_length", 8),
        r"llama\.attention\.value_length is 8, expected",
    ),
    "heads by layer": (
        key("llama.attention.head_count_kv", [2, 4]),
        r"llama\.attention\.head_count_kv differs by layer",
    ),
    "no heads": (
        key("llama.attention.head_count", 0),
        r"llama\.attention\.head_count is 0, expected an integer of 1",
    ),
    "heads as text": (
        key("llama.attention.head_count", "4"),
        r"llama\.attention\.head_count is 4, expected an integer",
    ),
    "no eps": (
        without_key("llama.attention.layer_norm_rms_epsilon"),
        r"llama\.attention\.layer_norm_rms_epsilon is missing",
    ),
    "unknown scaling": (
        key("llama.rope.scaling.type", "longrope"),
        r"llama\.rope\.scaling\.type is 'longrope'",
    ),
    "llama3 without its tensor": (
        key("llama.rope.scaling.type", "llama3"),
        r"is 'llama3', but rope_freqs\.weight is missing",
    ),
    "yarn without its context": (
        lambda keys, arrays: keys.update(
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
        ),
        r"original_context_length is missing, which yarn needs",
    ),
    "yarn's extrapolation": (
        key("llama.rope.scaling.yarn_ext_factor", 0.5),
        r"llama\.rope\.scaling\.yarn_ext_factor is 0\.5",
    ),
    "too few factors": (tensor("rope_freqs.weight", 7), r"rope_freqs\.weight, which holds 7"),
    "adapter": (key("general.type", "adapter"), r"holds a adapter, expected a whole model"),
    "narrow embeddings": (
        lambda keys, arrays: arrays.update({"token_embd.weight": np.ones((97, 31), np.float32)}),
        r"'token_embd\.weight' has shape \[97, 31\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, llama: Any, tmp_path: Path) -> None:
    edit, message = REFUSED[case]
    refused(write_gguf(tmp_path / "m.gguf", llama, edit), message)


@pytest.mark.parametrize(
    "edit",
    [
        key("llama.expert_count", 0),
        key("llama.vocab_size", 97),
        key("llama.rope.scaling.finetuned", True),
        key("llama.attention.scale", 0.25),
        key("llama.logit_scale", 1.0),
        key("general.languages", ["en"]),
        key("quantize.imatrix.file", "x"),
        key("llama.attention.head_count_kv", [2, 2]),
        tensor("rope_freqs.weight", 8),
    ],
)
def test_what_changes_nothing_is_accepted(edit: Edit, llama: Any, tmp_path: Path) -> None:
    assert open_native(write_gguf(tmp_path / "m.gguf", llama, edit)) is not None


def test_windows_of_unknown_layers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    model = AutoModelForCausalLM.from_config(Qwen3Config(**COMMON, num_hidden_layers=2))
    edit = key("qwen3.attention.sliding_window", 8)
    refused(write_gguf(tmp_path / "m.gguf", model, edit), r"does not say in which layers")
    edit = key("qwen3.attention.sliding_window", 128)  # its whole context
    assert open_native(write_gguf(tmp_path / "n.gguf", model, edit)) is not None


@pytest.mark.parametrize("keep", [6, 40, 3000, -1])
def test_truncated(keep: int, llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, r"is truncated")


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"")
    refused(path, r"is truncated")


def test_another_byte_order(llama: Any, tmp_path: Path) -> None:
    import gguf

    path = write_gguf(tmp_path / "m.gguf", llama, endianess=gguf.GGUFEndian.BIG)
    refused(path, r"is big-endian, expected little-endian")


def test_versions(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama)
    data = bytearray(path.read_bytes())
    data[4] = 77
    path.write_bytes(data)
    refused(path, r"GGUF version 77, expected 2 or 3")
    edit = key("general.quantization_version", 1)

    def both(keys: dict[str, Any], arrays: Arrays) -> None:
        edit(keys, arrays)
        arrays["token_embd.weight"] = quantised(arrays["token_embd.weight"], "Q8_0")  # type: ignore[assignment]

    refused(write_gguf(tmp_path / "old.gguf", llama, both), r"blocks of quantisation version 1")


def patched(path: Path, name: str, at: int, value: bytes) -> None:
    """Change ``value`` bytes behind a tensor's name in the table."""
    data = bytearray(path.read_bytes())
    start = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + at
    data[start : start + len(value)] = value
    path.write_bytes(data)


def test_unknown_block_type(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama)
    patched(path, "blk.0.attn_q.weight", 4 + 16, struct.pack("<I", 250))
    refused(path, r"'blk\.0\.attn_q\.weight' has block type 250, which this version does not know")


def test_blocks_that_do_not_fit_a_row(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama)
    patched(path, "blk.0.ffn_down.weight", 4 + 16, struct.pack("<I", 8))  # Q8_0: 48 = 1.5 * 32
    refused(path, r"'blk\.0\.ffn_down\.weight' has rows of 48 values, but blocks of Q8_0 hold 32")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16", "F32"])
def test_scales_that_are_no_numbers(kind: str, llama: Any, tmp_path: Path) -> None:
    bad = {"F16": b"\x00\x7e", "BF16": b"\xc0\x7f", "F32": b"\x00\x00\xc0\x7f"}.get(
        kind, b"\x00\x7e"
    )

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        name = "blk.1.attn_k.weight"
        if kind == "F32":
            arrays[name][5, 3] = np.nan
            return
        arrays[name] = quantised(arrays[name], kind)  # type: ignore[assignment]
        rows = arrays[name][1].view(np.uint8)
        rows[5, : len(bad)] = np.frombuffer(bad, np.uint8)
        arrays[name] = (kind, rows)  # type: ignore[assignment]

    path = write_gguf(tmp_path / "m.gguf", llama, edit)
    found = open_native(path)
    assert found is not None
    with pytest.raises(DynaSpecError, match=r"'blk\.1\.attn_k\.weight' holds .* NaN") as caught:
        read_weights(found.weights, found.spec, torch.float32)
    assert "\n" not in str(caught.value)


def shards(llama: Any, folder: Path) -> list[Path]:
    write_gguf(folder / "m.gguf", llama, split_max_tensors=9)
    return sorted(folder.glob("m-*-of-*.gguf"))


def test_a_shard_is_missing(llama: Any, tmp_path: Path) -> None:
    files = shards(llama, tmp_path)
    files[1].unlink()
    refused(files[2], r"shard 2 of 3 is missing \(m-00002-of-00003\.gguf\)")


def test_a_shard_of_another_name(llama: Any, tmp_path: Path) -> None:
    files = shards(llama, tmp_path)
    refused(files[1].rename(tmp_path / "alone.gguf"), r"one of 3 shards .* expected NAME-00001-of-")


def test_shards_in_wrong_order(llama: Any, tmp_path: Path) -> None:
    files = shards(llama, tmp_path)
    data = files[1].read_bytes()
    files[1].write_bytes(files[2].read_bytes())
    files[2].write_bytes(data)
    with pytest.raises(DynaSpecError, match=r"says it is shard 2 of 3, expected 1 of 3"):
        open_native(files[0])


def test_a_shard_of_another_model(llama: Any, tmp_path: Path) -> None:
    files = shards(llama, tmp_path)
    (tmp_path / "b").mkdir()
    write_gguf(tmp_path / "b" / "m.gguf", llama, tensor("extra", 32), split_max_tensors=9)
    files[2].write_bytes((tmp_path / "b" / "m-00003-of-00003.gguf").read_bytes())
    with pytest.raises(DynaSpecError, match=r"hold \d+ tensors, expected \d+"):
        open_native(files[0])


def test_an_unknown_architecture_is_left_to_others(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama)
    path.write_bytes(path.read_bytes().replace(b"llama", b"lLaMa"))
    assert open_native(path) is None


def test_no_architecture(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    refused(path, r"names no architecture")


def test_a_key_twice(tmp_path: Path) -> None:
    text = struct.pack("<Q", 1) + b"a"
    pair = text + struct.pack("<I", 8) + text
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pair + pair)
    refused(path, r"is corrupt \(key 'a' stands there twice\)")


def test_block_types_are_ggmls() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    from dynaspec_cli.gguf_files.blocks import BLOCK_TYPES

    for number, (name, values, size) in BLOCK_TYPES.items():
        kind = GGMLQuantizationType.__members__.get(name)
        if kind is not None:  # an older package knows fewer
            assert (int(kind), GGML_QUANT_SIZES[kind]) == (number, (values, size))
    assert len(BLOCK_TYPES) >= 30
