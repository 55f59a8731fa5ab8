"""Folders' weights as ``transformers`` chooses them: which files, which head, which defaults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.load import load_target
from dynaspec_cli.target.native_target import NativeTarget
from dynaspec_cli.target.weights import INDEX, SINGLE, WeightFiles

IDS = torch.randint(3, 97, (12,), generator=torch.Generator().manual_seed(0))


def native(folder: Path) -> NativeTarget:
    target = load_target(folder, "tiny", torch.float32, torch.device("cpu"))
    assert isinstance(target, NativeTarget)
    return target


def same_as_transformers(folder: Path) -> NativeTarget:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    target = native(folder)
    with torch.inference_mode():
        wanted = model(input_ids=IDS[None], use_cache=False).logits[0]
    got = target.prefill(target.begin(32), IDS).logits()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert target.head_hash() == head_hash(model.get_output_embeddings().weight)
    return target


@pytest.fixture
def tied(family_dir: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder whose config ties the head (llama3's)."""
    return Path(shutil.copytree(family_dir("llama3"), tmp_path / "tied"))


def test_a_stored_head_of_a_tied_model_is_kept(tied: Path) -> None:
    tensors = load_file(tied / SINGLE)
    embeddings = tensors["model.embed_tokens.weight"]
    plain = same_as_transformers(tied).head_hash()
    other = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
    save_file({**tensors, "lm_head.weight": other}, tied / SINGLE, metadata={"format": "pt"})
    target = same_as_transformers(tied)
    assert torch.equal(target.head_weight().data, other)
    assert target.head_hash() != plain
    copy = {**tensors, "lm_head.weight": embeddings.clone()}
    save_file(copy, tied / SINGLE, metadata={"format": "pt"})
    target = same_as_transformers(tied)
    assert target.head_hash() == plain
    weights = target._weights
    assert weights.head.data.data_ptr() == weights.embedding.data.data_ptr()  # held once


def test_the_single_file_goes_before_an_index(tied: Path) -> None:
    absent = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tied / INDEX).write_text(json.dumps(absent))
    same_as_transformers(tied)
    tensors = load_file(tied / SINGLE)
    shard = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(shard, tied / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    assert torch.equal(WeightFiles(tied)["model.norm.weight"], tensors["model.norm.weight"])
    same_as_transformers(tied)


def test_an_index_whose_shard_is_absent(tied: Path) -> None:
    (tied / SINGLE).rename(tied / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tied / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(
        DynaSpecError, match=r"model-00002-of-00002\.safetensors: .* cannot be read"
    ):
        WeightFiles(tied)
    (tied / INDEX).write_text('{"weight_map"')
    with pytest.raises(DynaSpecError, match=r"index\.json: the index cannot be read"):
        WeightFiles(tied)


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"head_dim": None, "num_key_value_heads": 2},
        {"rms_norm_eps": 1e-6, "hidden_act": "silu"},
    ],
)
def test_null_keys(values: dict[str, Any], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    changed(tmp_path, **values)
    same_as_transformers(tmp_path)


def test_a_null_of_key_heads_means_all_heads(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path)
    changed(tmp_path, num_key_value_heads=None)
    same_as_transformers(tmp_path)


def test_a_null_without_a_meaning(tied: Path) -> None:
    changed(tied, num_hidden_layers=None)
    with pytest.raises(
        DynaSpecError, match=r"num_hidden_layers|does not know this model"
    ) as caught:
        native(tied)
    assert "\n" not in str(caught.value)
