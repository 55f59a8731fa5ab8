"""``export-vllm``: what a draft folder holds, read by the plugin's own checks, and what is
refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.eagle import expected_shapes
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.export.vllm_folder import KEY, VllmExport, export_vllm
from dynaspec_cli.export.vllm_shortlist import ShortlistSizes
from dynaspec_cli.target.load import load

sys.path.insert(0, str(Path(__file__).parents[1] / "drafters"))

from plain_heads import head_shapes, random_tensors

PLUGIN = Path(__file__).parents[2] / "integrations" / "vllm"
SIZES = ShortlistSizes(core=32, recent=16, taken=2, cluster_size=8)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}


@pytest.fixture(scope="module")
def draft_spec() -> Any:
    """The plugin's reader of config.json, which is what must accept a folder."""
    sys.path.insert(0, str(PLUGIN))
    try:
        from dynaspec_vllm.spec import DraftSpec
    finally:
        sys.path.remove(str(PLUGIN))
    return DraftSpec


@pytest.fixture
def ranked(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A token map of half of the vocabulary, in an order of its own."""
    vocab = json.loads((tiny_model_dir / "config.json").read_text())["vocab_size"]
    ids = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))[: vocab // 2]
    path = tmp_path / "ranked.json"
    path.write_text(json.dumps(ids.tolist()))
    return path


def written(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """(config, the drafter's tensors, the shortlist's) of a draft folder."""
    tensors = load_file(folder / "model.safetensors")
    mine = {
        name.removeprefix("shortlist."): tensors.pop(name)
        for name in sorted(tensors)
        if name.startswith("shortlist.")
    }
    return json.loads((folder / "config.json").read_text()), tensors, mine


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def facts(target: Path) -> SimpleNamespace:
    return SimpleNamespace(**json.loads((target / "config.json").read_text()))


def check_shortlist(spec: Any, mine: dict[str, Tensor], head: Tensor, core: list[int]) -> None:
    """Core and clusters hold every row once; the router scores their means."""
    spec.check_tensors(mine, head.shape[1])
    assert mine["core"].tolist() == core
    rows = mine["clusters"][mine["clusters"] >= 0]
    assert sorted(rows.tolist() + core) == list(range(head.shape[0]))
    for cluster, score in zip(mine["clusters"], mine["router"], strict=True):
        torch.testing.assert_close(score, head[cluster[cluster >= 0].long()].float().mean(0))
    assert not bool(mine["router_bias"].any())


def test_a_language_model_keeps_its_weights(
    tiny_model_dir: Path, ranked: Path, tmp_path: Path, draft_spec: Any
) -> None:
    out = tmp_path / "draft"
    done = export_vllm(
        VllmExport(str(tiny_model_dir), str(tiny_model_dir), out, str(ranked), SIZES)
    )
    config, tensors, mine = written(out)
    before = load_file(tiny_model_dir / "model.safetensors")
    assert tensors.keys() == before.keys()
    assert all(tensors[name].equal(before[name]) for name in before)
    assert config["architectures"] == ["DynaSpecLlamaForCausalLM"]
    assert done["speculative_config"] == {
        "method": "draft_model",
        "model": str(out),
        "num_speculative_tokens": 4,
        "use_local_argmax_reduction": True,
    }
    spec = draft_spec.of(config)
    spec.check_target(facts(tiny_model_dir))
    first = json.loads(ranked.read_text())[:32]
    check_shortlist(spec, mine, before["lm_head.weight"], first)
    assert done["rows_scored"] == 32 + 16 + 2 * spec.cluster_size
    assert spec.cluster_size <= 8
    assert "vllm serve" in (out / "README.md").read_text()
    again = export_vllm(
        VllmExport(
            str(tiny_model_dir),
            str(tiny_model_dir),
            out,
            str(ranked),
            dataclasses.replace(SIZES, taken=0),
        )
    )
    config, _, mine = written(out)
    assert again["clusters"] == 0
    assert list(mine) == ["core"]
    draft_spec.of(config).check_tensors(mine, 32)


def test_an_eagle1_head_says_its_biases(
    tiny_model_dir: Path, ranked: Path, tmp_path: Path, draft_spec: Any
) -> None:
    target = facts(tiny_model_dir)
    shapes = head_shapes(False, 32, 32, target.vocab_size, 2) | {"fc.bias": (32,)}
    for i in range(2):
        sizes = zip("qkv", (32, 16, 16), strict=True)
        shapes |= {f"layers.{i}.self_attn.{p}_proj.bias": (size,) for p, size in sizes}
    given = {f"model.{name}": t for name, t in random_tensors(shapes).items()}
    config = {"hidden_size": 32, "vocab_size": target.vocab_size, "rope_theta": 5e5, **HEADS}
    head = write(tmp_path / "head", {**config, "bias": True, "qkv_bias": True}, given)
    out = tmp_path / "draft"
    done = export_vllm(VllmExport(str(tiny_model_dir), str(head), out, str(ranked), SIZES))
    made, tensors, mine = written(out)
    assert {f"model.{name}" for name in tensors} == given.keys()
    assert all(tensors[name].equal(given[f"model.{name}"]) for name in tensors)
    assert made["architectures"] == ["EagleDynaSpecForCausalLM"]
    assert done["speculative_config"]["method"] == "eagle"
    # "bias" would give vLLM's layers biases of the attention.
    assert "bias" not in made
    assert (made["fc_bias"], made["qkv_bias"], made["attention_bias"]) == (True, True, False)
    assert made["num_hidden_layers"] == 2
    assert made["rope_parameters"]["rope_theta"] == made["rope_theta"] == 5e5
    spec = draft_spec.of(made)
    spec.check_target(target)
    own = load_file(tiny_model_dir / "model.safetensors")["lm_head.weight"]
    check_shortlist(spec, mine, own, json.loads(ranked.read_text())[:32])


def test_an_eagle3_head_shortlists_its_own_rows(
    tiny_model_dir: Path, ranked: Path, tmp_path: Path, draft_spec: Any
) -> None:
    target = facts(tiny_model_dir)
    rows = 120
    shapes = head_shapes(True, 32, 32, rows, taps=2)
    given = random_tensors(shapes)
    ids = torch.arange(rows) * 3 + 1
    given |= {"d2t": ids - torch.arange(rows), "t2d": torch.zeros(target.vocab_size).bool()}
    given["t2d"][ids] = True
    config = {"hidden_size": 32, "vocab_size": target.vocab_size, "draft_vocab_size": rows, **HEADS}
    head = write(tmp_path / "head", config, given)
    out = tmp_path / "draft"
    done = export_vllm(
        VllmExport(str(tiny_model_dir), str(head), out, str(ranked), SIZES, {"taps": "1,2"})
    )
    made, tensors, mine = written(out)
    assert done["rows"] == rows
    assert "t2d" not in tensors
    assert tensors["d2t"].equal(given["d2t"])
    assert made["eagle_aux_hidden_state_layer_ids"] == [1, 2]
    assert made["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 2]
    row_of = {token: row for row, token in enumerate(ids.tolist())}
    known = [row_of[token] for token in json.loads(ranked.read_text()) if token in row_of]
    spec = draft_spec.of(made)
    assert spec.rows == rows
    check_shortlist(spec, mine, given["lm_head.weight"], known[:32])


def vllm_drafter(folder: Path, model: Path, **changes: Any) -> tuple[Path, dict[str, Tensor]]:
    """A random drafter in the form of ``train-drafter --for vllm``."""
    target, _ = load(str(model), "float32", "cpu")
    values: dict[str, Any] = {
        "target_name": "tiny",
        "head_hash": target.head_hash(),
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "activation": "gelu_tanh",
        "eps": 1e-5,
        "attention_scale": 0.5,
        "rope_theta": 5e5,
        "window": 0,
        "feature_scale": 2.0,
        "has_qk_norm": True,
        "has_qkv_bias": True,
        "has_post_norms": True,
        "use_current_token": False,
        "normed_features": True,
    }
    config = DrafterConfig(**(values | changes))
    tensors = random_tensors(expected_shapes(config))
    return write(folder, json.loads(config.to_json()), tensors), tensors


def test_a_drafter_for_vllm_is_taken_apart(
    tiny_model_dir: Path, ranked: Path, tmp_path: Path, draft_spec: Any
) -> None:
    source, given = vllm_drafter(tmp_path / "drafter", tiny_model_dir)
    out = tmp_path / "draft"
    export_vllm(VllmExport(str(tiny_model_dir), str(source), out, str(ranked), SIZES))
    made, tensors, _ = written(out)
    for i in range(2):
        p = f"layers.{i}."
        qkv = [tensors.pop(f"{p}self_attn.{n}_proj.weight") for n in "qkv"]
        bias = [tensors.pop(f"{p}self_attn.{n}_proj.bias") for n in "qkv"]
        mlp = [tensors.pop(f"{p}mlp.{n}_proj.weight") for n in ("gate", "up")]
        assert torch.cat(qkv).equal(given[f"{p}qkv"])
        assert torch.cat(bias).equal(given[f"{p}qkv_bias"])
        assert torch.cat(mlp).equal(given[f"{p}gate_up"])
        for theirs, ours in {
            "self_attn.o_proj": "out",
            "mlp.down_proj": "down",
            "self_attn.q_norm": "q_norm",
            "self_attn.k_norm": "k_norm",
            "input_norm": "input_norm",
            "mlp_norm": "mlp_norm",
            "post_attention_norm": "post_attention_norm",
            "post_mlp_norm": "post_mlp_norm",
        }.items():
            assert tensors.pop(f"{p}{theirs}.weight").equal(given[f"{p}{ours}"])
    final = load_file(tiny_model_dir / "model.safetensors")["model.norm.weight"]
    assert tensors.pop("norm.weight").equal(final)
    assert tensors.pop("gate").equal(given["gate"])
    assert tensors.pop("fc.weight").equal(given["fc"])
    assert tensors.pop("feature_norm.weight").equal(given["feature_norm"])
    assert tensors.pop("next_norm.weight").equal(given["next_norm"])
    assert not tensors
    assert made["attention_scale"] == 0.5
    assert (made["qk_norm"], made["qkv_bias"], made["post_norms"]) == (True, True, True)
    assert made["hidden_act"] == "gelu_pytorch_tanh"
    assert draft_spec.of(made).form == "dynaspec-eagle-1"


def refusal(model: Path, drafter: Path, out: Path, ranked: Path | str, **sizes: int) -> str:
    with pytest.raises(DynaSpecError) as error:
        export_vllm(
            VllmExport(
                str(model), str(drafter), out, str(ranked), dataclasses.replace(SIZES, **sizes)
            )
        )
    assert not out.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_refused(
    tiny_model_dir: Path, tiny_drafter_dir: Path, ranked: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "draft", tiny_model_dir
    said = refusal(model, tiny_drafter_dir, out, ranked)
    assert "the current token" in said
    assert "train-drafter --for vllm" in said
    foreign, _ = vllm_drafter(tmp_path / "foreign", model, head_hash="0" * 32)
    assert "made for tiny" in refusal(model, foreign, out, ranked)
    vocab = facts(model).vocab_size
    config = {"hidden_size": 16, "vocab_size": vocab, **HEADS}
    narrow = write(tmp_path / "narrow", config, random_tensors(head_shapes(False, 16, 16, vocab)))
    assert "hidden size 16, but" in refusal(model, narrow, out, ranked)
    shapes = head_shapes(False, 32, 32, vocab)
    shapes |= {f"layers.0.self_attn.{n}_norm.weight": (8,) for n in "qk"}
    normed = write(tmp_path / "normed", config | {"hidden_size": 32}, random_tensors(shapes))
    assert "norms of queries and keys" in refusal(model, normed, out, ranked)
    assert "at most the" in refusal(model, model, out, ranked, core=vocab)
    assert "--clusters: expected at most" in refusal(model, model, out, ranked, taken=vocab)
    assert "--shortlist auto: none ships" in refusal(model, model, out, "auto")
    assert "neither a token map" in refusal(model, model, out, tmp_path / "nowhere")
    (tmp_path / "ids.json").write_text(json.dumps([1, 2, vocab]))
    assert f"id {vocab}" in refusal(model, model, out, tmp_path / "ids.json")
    other = tmp_path / "other"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["GptForCausalLM"]}))
    assert "architecture 'GptForCausalLM'" in refusal(model, other, out, ranked)


@pytest.mark.parametrize(
    "changes", [{"core": 0}, {"recent": -1}, {"taken": -1}, {"cluster_size": 0}]
)
def test_sizes_are_checked(changes: dict[str, int]) -> None:
    with pytest.raises(DynaSpecError, match="expected at least"):
        ShortlistSizes(**changes)


def test_the_command_prints_what_vllm_is_given(
    program: Any, tiny_model_dir: Path, ranked: Path, tmp_path: Path
) -> None:
    out = tmp_path / "draft"
    given = ["--model", tiny_model_dir, "--drafter", tiny_model_dir, "--out", out]
    given += ["--shortlist", ranked, "--core", 20, "--clusters", 0]
    done = program("export-vllm", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert "vllm serve" in done.stderr
    assert "use_local_argmax_reduction" in done.stderr
    report = json.loads(program("export-vllm", *given, "--json").stdout)
    assert (report["schema"], report["method"], report["clusters"]) == (1, "draft_model", 0)
    assert KEY in json.loads((out / "config.json").read_text())
    assert program("export-vllm", *given[:4], "--out", out).returncode == 1


def test_the_plugin_imports_nothing_of_this_package() -> None:
    assert importlib.util.find_spec("dynaspec_cli") is not None
    for path in PLUGIN.rglob("*.py"):
        assert "dynaspec_cli" not in path.read_text(encoding="utf-8"), path
