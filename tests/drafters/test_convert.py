"""``dynaspec convert``: round trips bit for bit, and what a form cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_cases as golden
import pytest
import torch
from click.testing import CliRunner
from golden_cases import KEPT, Case
from plain_heads import head_shapes, random_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynaspec_cli.checkpoints.bundle import ShortlistBundle
from dynaspec_cli.main import cli

EAGLE1, EAGLE3, SPECULATORS = (
    KEPT / "eagle1-llama-nobias",
    KEPT / "eagle3-llama",
    KEPT / "speculators-eagle3.1-qwen3",
)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["convert", *map(str, arguments)])


def written(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert torch.equal(tensor.view(torch.uint8), b[name].view(torch.uint8))


def test_eagle3_to_speculators_and_back(tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    done = written(EAGLE3, there, "--to", "speculators")
    assert (done["from"], done["kind"]) == ("eagle-3", "speculators-eagle-3")
    config = json.loads((there / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["transformer_layer_config"]["rope_parameters"]["rope_theta"] == 10000.0
    assert "layers.0.hidden_norm.weight" in weights(there)
    written(there, back, "--to", "eagle")
    same(weights(back), weights(EAGLE3))
    for folder in (there, back):
        (folder / "expected.json").write_bytes((EAGLE3 / "expected.json").read_bytes())
        (folder / "expected.safetensors").write_bytes(
            (EAGLE3 / "expected.safetensors").read_bytes()
        )
        case = Case(folder, Case(EAGLE3).target)
        golden.check_prefill(case, case.drafter())
        golden.check_beams(case, case.drafter())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_round_trips_from_either_side_with_layers_and_biases(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """A head that only speculators' form holds comes back from there alone; pickled weights and
    other names end in the same tensors."""
    shapes = head_shapes(True, 16, 16, 40, layers=2)
    for i, prefix in enumerate(("midlayer.", "layers.1.")):
        assert i < 2
        for p, size in zip("qkvo", (32, 16, 16, 16), strict=True):
            shapes[f"{prefix}self_attn.{p}_proj.bias"] = (size,)
    tensors = {name: t.to(dtype) for name, t in random_tensors(shapes).items()}
    config = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 40,
        "attention_bias": True,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]},
        "rope_theta": 123.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    eagle = tmp_path / "eagle"
    eagle.mkdir()
    (eagle / "config.json").write_text(json.dumps(config))
    (eagle / "LICENSE.txt").write_text("terms")
    (eagle / "README.md").write_text("---\nlicense: mit\n---\nA head.\n")
    torch.save(tensors, eagle / "pytorch_model.bin")
    done = written(eagle, tmp_path / "s", "--to", "speculators")
    assert any("outputs of these layers" in note for note in done["notes"])
    found = json.loads((tmp_path / "s" / "config.json").read_text())
    assert found["eagle_aux_hidden_state_layer_ids"] == [2, 4, 6]
    layer = found["transformer_layer_config"]
    assert layer["attention_bias"] is True
    assert layer["num_hidden_layers"] == 2
    assert layer["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 123.0}
    assert (tmp_path / "s" / "LICENSE.txt").read_text() == "terms"
    card = (tmp_path / "s" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\nA head.")
    assert "Converted from eagle-3 to speculators-eagle-3" in card
    same(
        weights(tmp_path / "s"),
        {name.replace("midlayer.", "layers.0."): t for name, t in tensors.items()},
    )
    said = refused(tmp_path / "s", tmp_path / "e", "--to", "eagle")
    assert "2 layers (it has one); biases of the attention" in said
    written(eagle, tmp_path / "e", "--to", "eagle")
    same(weights(tmp_path / "e"), tensors)


def test_what_the_forms_cannot_hold(tmp_path: Path, tiny_drafter_dir: Path) -> None:
    out = tmp_path / "out"
    said = refused(SPECULATORS, out, "--to", "eagle")
    for name in ("fc_norm", "norm_output", "norms of queries and keys"):
        assert name in said
    assert "EAGLE-1" in refused(EAGLE1, out, "--to", "speculators")
    said = refused(tiny_drafter_dir, out, "--to", "eagle")
    for name in ("a gate", "norms of the feature", "the embedding of the current token"):
        assert name in said
    assert "own form" in refused(EAGLE3, out, "--to", "dynaspec")
    assert "no list of its tokens" in refused(EAGLE1, out.with_suffix(".json"), "--to", "token-map")
    assert not out.exists()


def test_ids_that_would_read_as_others(tmp_path: Path) -> None:
    """Layer inputs that do not begin with 2 have no unambiguous form in an EAGLE folder."""
    folder = tmp_path / "s"
    written(EAGLE3, folder, "--to", "speculators")
    config = json.loads((folder / "config.json").read_text())
    for ids, fits in (([2, 5, 7], True), ([1, 4, 6], False), ([3, 4, 6], False)):
        config["eagle_aux_hidden_state_layer_ids"] = ids
        (folder / "config.json").write_text(json.dumps(config))
        if fits:
            written(folder, tmp_path / "e", "--to", "eagle")
            back = json.loads((tmp_path / "e" / "config.json").read_text())
            assert back["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == ids
        else:
            assert f"layers {ids}" in refused(folder, tmp_path / "x", "--to", "eagle")


def test_the_same_form_is_rewritten(tmp_path: Path) -> None:
    written(EAGLE1, tmp_path / "e", "--to", "eagle")
    same(weights(tmp_path / "e"), weights(EAGLE1))
    written(SPECULATORS, tmp_path / "s", "--to", "speculators")
    same(weights(tmp_path / "s"), weights(SPECULATORS))
    assert "exists and is no drafter" in refused(EAGLE1, tmp_path / "e", "--to", "eagle")


def test_token_lists(tmp_path: Path, tiny_model_dir: Path) -> None:
    ids = [7, 3, 9, 250, 0]
    torch.save(ids, tmp_path / "freq.pt")
    written(tmp_path / "freq.pt", tmp_path / "map.json", "--to", "token-map")
    assert json.loads((tmp_path / "map.json").read_text()) == ids
    bundle = tmp_path / "bundle"
    done = written(tmp_path / "map.json", bundle, "--to", "dynaspec", "--model", tiny_model_dir)
    assert done["tokens"] == 5
    made = ShortlistBundle.from_pretrained(bundle)
    assert made.frequency.tolist() == ids
    assert made.config.method == "fr-spec"
    written(bundle, tmp_path / "again.pt", "--to", "token-map")
    assert torch.load(tmp_path / "again.pt", weights_only=True) == ids
    written(EAGLE3, tmp_path / "head.txt", "--to", "token-map")
    known = [int(line) for line in (tmp_path / "head.txt").read_text().split()]
    assert known == Case(EAGLE3).drafter().head.vocab.ids.tolist()
    assert "give --model" in refused(tmp_path / "map.json", tmp_path / "b", "--to", "dynaspec")
    assert "no such form" in refused(tmp_path / "map.json", tmp_path / "b", "--to", "eagle")
    assert "a bundle already" in refused(
        bundle, tmp_path / "b", "--to", "dynaspec", "--model", tiny_model_dir
    )
    (tmp_path / "far.json").write_text("[1, 400]")
    assert "outside the target's vocabulary" in refused(
        tmp_path / "far.json", tmp_path / "b", "--to", "dynaspec", "--model", tiny_model_dir
    )


def test_a_bundle_made_from_a_map_drafts(tmp_path: Path, tiny_model_dir: Path) -> None:
    from dynaspec_cli.config import ShortlistConfig
    from dynaspec_cli.shortlist import registry
    from dynaspec_cli.target.load import load

    (tmp_path / "map.json").write_text(json.dumps([5, 9, 11]))
    written(tmp_path / "map.json", tmp_path / "b", "--to", "dynaspec", "--model", tiny_model_dir)
    target, _ = load(str(tiny_model_dir), "float32", "cpu")
    shortlist = registry.create(ShortlistConfig(str(tmp_path / "b")), target)
    assert shortlist.size == 3


def test_stray_shards_are_joined(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_bytes((EAGLE3 / "config.json").read_bytes())
    tensors = weights(EAGLE3)
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[:5],
        "model-00002-of-00002.safetensors": names[5:],
    }
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part)
    index = {name: part for part, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    written(folder, tmp_path / "one", "--to", "eagle")
    same(weights(tmp_path / "one"), tensors)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "which model.safetensors.index.json names, is missing" in refused(
        folder, tmp_path / "two", "--to", "eagle"
    )
