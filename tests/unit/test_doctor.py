"""Memory estimates by hand, and what a shortlist can do for each kind of drafter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dynaspec_cli.doctor import memory
from dynaspec_cli.doctor.drafter import inspect_drafter
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.load import captures
from dynaspec_cli.target.resolve import ModelSource


def write(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shapes:
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors")
    return folder


SHAPE = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 4, "num_hidden_layers": 3}


def estimate(folder: Path, dtype: str = "bfloat16", **options: Any) -> dict[str, Any]:
    defaults = {"context": 10, "tree_size": 5, "drafter_bytes": 7, "reordered_head": True}
    sizes = memory.folder_sizes(folder)
    return memory.estimate(sizes, dtype, **{**defaults, "available": 10**9, **options})


def test_memory_by_hand(tmp_path: Path) -> None:
    write(tmp_path, SHAPE, {"a": (50, 8), "b": (100,)})
    found = estimate(tmp_path)
    assert found["parts_bytes"] == {
        "weights": 500 * 2,
        "kv_cache": 2 * 3 * 4 * 2 * 2 * (10 + 5 + 1),
        "drafter": 7,
        "shortlist_head": 50 * 8 * 2,
        "verification_logits": 6 * 50 * 4,
        "tokenizer": 50 * memory.TOKEN_BYTES,
        "program": memory.PROGRAM_BYTES,
    }
    assert found["total_bytes"] == sum(found["parts_bytes"].values())
    assert found["fits"] is True
    assert found["head_share_of_weights"] == pytest.approx(400 / 500)


def test_packed_blocks_count_as_they_are_stored() -> None:
    """What has no packed form is de-quantised."""
    sizes = memory.ModelSizes(500, 50, 8, 4, 1, packed_bytes=300, other=20)
    rest = {"context": 1, "tree_size": 1, "drafter_bytes": 0, "reordered_head": False}
    for packed, expected in ((True, 300 + 20 * 2), (False, 500 * 2)):
        found = memory.estimate(sizes, "bfloat16", **rest, available=None, packed=packed)
        assert found["parts_bytes"]["weights"] == expected
    assert sizes.weight_bytes(4, packed=True) == 300 + 20 * 4


def test_memory_of_grouped_heads_and_nested_config(tmp_path: Path) -> None:
    text = {**SHAPE, "num_key_value_heads": 1, "head_dim": 16}
    write(tmp_path, {"vocab_size": 1, "text_config": text}, {"a": (4,)})
    found = estimate(tmp_path, "float32", reordered_head=False)
    assert found["parts_bytes"]["kv_cache"] == 2 * 3 * 1 * 16 * 4 * 16
    assert found["parts_bytes"]["shortlist_head"] == 0
    assert found["vocab_size"] == 50


@pytest.mark.parametrize(
    ("options", "lever"),
    [
        ({"context": 10**6}, "the KV cache"),
        ({"drafter_bytes": 10**6}, "the drafter"),
        ({"tree_size": 1000, "context": 1}, "the logits"),
    ],
)
def test_largest_lever(tmp_path: Path, options: dict[str, int], lever: str) -> None:
    write(tmp_path, {**SHAPE, "vocab_size": 500}, {"a": (4,)})
    assert estimate(tmp_path, **options)["largest_lever"].startswith(lever)


def test_captured_passes_are_counted(tmp_path: Path) -> None:
    """Llama-3-8B in bf16: 64 rows of logits with what a sampled walk makes of them, and graphs have
    nodes; a drafter's rounds come on top."""
    sizes = memory.ModelSizes(8_030_261_248, 128256, 4096, 2 * 32 * 1024, 32)

    def graphs(drafter_bytes: int) -> int:
        found = memory.estimate(
            sizes,
            "bfloat16",
            context=1000,
            tree_size=63,
            drafter_bytes=drafter_bytes,
            reordered_head=False,
            available=None,
            graphs=True,
        )
        assert found["total_bytes"] == sum(found["parts_bytes"].values())
        return found["parts_bytes"]["graphs"]

    assert 12 * 64 * 128256 * 4 < graphs(0) < 700 << 20
    assert 51 * 128256 * 4 < graphs(1) - graphs(0) < 200 << 20


def test_what_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path, SHAPE, {"a": (10**6,)})
    found = estimate(tmp_path, "float32", available=10**6)
    assert found["fits"] is False
    assert "bfloat16" in found["largest_lever"]
    assert estimate(tmp_path, available=None)["fits"] is None


def test_broken_headers(tmp_path: Path) -> None:
    write(tmp_path, SHAPE, {})
    for data in (b"", b"\xff" * 8, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"):
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(DynaSpecError, match="no readable safetensors"):
            memory.safetensors_shapes(tmp_path)


OWN = {
    "format": "dynaspec-eagle-1",
    "target_name": "t",
    "head_hash": "h",
    "hidden_size": 4,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 4,
    "intermediate_size": 4,
    "activation": "silu",
    "eps": 1e-6,
    "attention_scale": 0.5,
    "rope_theta": 10000.0,
    "window": 0,
    "feature_scale": 1.0,
    "has_qk_norm": False,
    "has_qkv_bias": False,
    "has_post_norms": False,
}
LAYER = {
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_attention_heads": 2,
    "vocab_size": 90,
}
EAGLE3 = {"midlayer.hidden_norm.weight": (4,)}


@pytest.mark.parametrize(
    ("config", "shapes", "kind", "rows", "can_raise"),
    [
        ({**OWN, "vocab_size": 90}, {"fc": (2, 2)}, "dynaspec-eagle-1", None, True),
        (LAYER, {"fc.weight": (4, 8), "layers.0.x": (1,)}, "eagle-1", None, True),
        (LAYER, {**EAGLE3, "lm_head.weight": (90, 4)}, "eagle-3", 90, True),
        (LAYER, {**EAGLE3, "lm_head.weight": (30, 4)}, "eagle-3", 30, False),
        (LAYER, EAGLE3, "eagle-3", None, True),
        ({**LAYER, "tie_word_embeddings": True}, EAGLE3, "eagle-3", 90, True),
        (
            {
                "speculators_model_type": "eagle3",
                "norm_before_residual": True,
                "draft_vocab_size": 32,
                "transformer_layer_config": LAYER,
            },
            {"lm_head.weight": (32, 4)},
            "speculators-eagle-3",
            32,
            False,
        ),
    ],
)
def test_what_a_shortlist_can_do(
    tmp_path: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    kind: str,
    rows: int | None,
    can_raise: bool,
) -> None:
    found = inspect_drafter(write(tmp_path, config, shapes))
    assert found["format"] == kind
    assert found["head_rows"] == rows
    assert found["can_raise_coverage"] is can_raise
    assert ("can only cut cost" in found["verdict"]) is not can_raise


def test_a_broken_pickle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"vocab_size": 9}, {})
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DynaSpecError, match=r"pytorch_model\.bin: not a readable"):
        inspect_drafter(tmp_path)


@pytest.mark.parametrize("named", ["none", "lookup"])
def test_head_share_without_a_layer_to_time(named: str, tiny_model_dir: Path) -> None:
    from dynaspec_cli.doctor import head_share
    from dynaspec_cli.engine.api import Engine

    engine = Engine.load(str(tiny_model_dir), "float32", "cpu", drafter=named)
    found = head_share.measure(engine.target, engine.drafter, engine.target.num_layers, 64)
    why = "there is no drafter" if named == "none" else "lookup is no layer below it"
    assert found["draft_body_source"] == f"one target layer ({why})"
    assert 0 <= found["head_share_shortlist"] <= 1


@pytest.mark.parametrize(
    ("device", "kind", "captured"),
    [("cuda", "llama", True), ("cuda", "gpt2", False), ("cpu", "llama", False)],
)
def test_graphs_are_counted_where_passes_are_captured(
    tmp_path: Path, device: str, kind: str, captured: bool
) -> None:
    """Not for models that run on transformers' layers."""
    from transformers import GPT2Config, LlamaConfig

    config = LlamaConfig() if kind == "llama" else GPT2Config()
    config.save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), folder=tmp_path)
    assert captures(source, torch.device(device)) is captured
