"""Heads that are damaged, incomplete, of another target or of another method: one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import KEPT, Case
from safetensors.torch import load_file, save_file

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.options import parse_options
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.errors import DynaSpecError, UsageError

EAGLE1, EAGLE3 = "eagle1-llama-nobias", "eagle3-llama"
SPECULATORS = "speculators-eagle3.1-qwen3"
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]


def made(folder: Path, name: str, change: Change) -> Path:
    """The case's folder with its config and tensors changed."""
    folder.mkdir(exist_ok=True)
    config = json.loads((KEPT / name / "config.json").read_text())
    tensors = load_file(KEPT / name / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def message(folder: Path, name: str, **options: str) -> str:
    """The one line of the refusal."""
    with pytest.raises(DynaSpecError) as caught:
        load_folder(DrafterFiles(folder, "d", options), Case(KEPT / name).target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def setting(**values: Any) -> Change:
    return lambda config, tensors: config.update(values)


def in_layer(**values: Any) -> Change:
    return lambda config, tensors: config["transformer_layer_config"].update(values)


def without(name: str) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def with_tensor(name: str, tensor: torch.Tensor) -> Change:
    return lambda config, tensors: tensors.update({name: tensor})


def filled(name: str, value: float, at: int = 0) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[at] = value

    return change


def mapped(change: Callable[[torch.Tensor, torch.Tensor], Any]) -> Change:
    return lambda config, tensors: change(tensors["d2t"], tensors["t2d"])


def unsaid(key: str) -> Change:
    return lambda config, tensors: config.pop(key)


CASES: dict[str, tuple[str, Change, str]] = {
    "another width": (EAGLE1, setting(hidden_size=128), "hidden size 128, but table has 64"),
    "another vocabulary": (EAGLE3, setting(vocab_size=1200), "vocabulary of 1200, but table has"),
    "another target width": (EAGLE3, setting(target_hidden_size=32), "hidden size 32, but table"),
    "zeros": (
        EAGLE3,
        mapped(lambda d2t, t2d: [d2t.zero_(), t2d.zero_()]),
        "d2t: all zeros",
    ),
    "duplicates": (
        EAGLE3,
        mapped(lambda d2t, t2d: d2t[1].copy_(d2t[0] - 1)),
        "occurs 2 times; expected distinct ids",
    ),
    "out of range": (EAGLE3, filled("d2t", 5000, 319), "is outside the target's vocabulary"),
    "negative": (EAGLE3, filled("d2t", -7, 0), "is outside the target's vocabulary"),
    "t2d disagrees": (
        EAGLE3,
        mapped(lambda d2t, t2d: t2d.logical_not_()),
        "disagrees with t2d about token",
    ),
    "t2d of another vocabulary": (
        EAGLE3,
        with_tensor("t2d", torch.ones(999, dtype=torch.bool)),
        "t2d has shape [999]",
    ),
    "d2t too short": (EAGLE3, with_tensor("d2t", torch.arange(9)), "the head's 320 rows"),
    "d2t of floats": (EAGLE3, with_tensor("d2t", torch.rand(320)), "expected integer token ids"),
    "no d2t": (EAGLE3, without("d2t"), "lack 'd2t'"),
    "no fc": (EAGLE3, without("fc.weight"), "lack 'fc.weight'"),
    "no norm": (EAGLE3, without("norm.weight"), "lack 'norm.weight'"),
    "no k": (EAGLE3, without("midlayer.self_attn.k_proj.weight"), "k_proj.weight'"),
    "no head": (EAGLE3, without("lm_head.weight"), "lack 'lm_head.weight'"),
    "unknown tensor": (
        EAGLE3,
        with_tensor("midlayer.extra.weight", torch.ones(3)),
        "'layers.0.extra.weight' is no tensor",
    ),
    "unexpected tap norm": (
        EAGLE3,
        with_tensor("input_norm.weight", torch.ones(192)),
        "'input_norm.weight' is no tensor",
    ),
    "missing tap norm": (SPECULATORS, without("fc_norm.1.weight"), "lack 'fc_norm.1.weight'"),
    "NaN": (EAGLE1, filled("fc.weight", float("nan"), 17), "'fc.weight' holds NaN"),
    "infinity": (
        EAGLE3,
        filled("midlayer.mlp.down_proj.weight", float("inf"), 3),
        "'layers.0.mlp.down_proj.weight' holds NaN or infinite",
    ),
    "another shape": (
        EAGLE3,
        with_tensor("norm.weight", torch.ones(63)),
        "shape [63], config.json asks for [64]",
    ),
    "integer weights": (
        EAGLE3,
        with_tensor("norm.weight", torch.ones(64, dtype=torch.int8)),
        "'norm.weight' holds int8",
    ),
    "bias said, none there": (EAGLE1, setting(bias=True), "lack 'fc.bias'"),
    "bias there, none said": (
        EAGLE1,
        with_tensor("fc.bias", torch.ones(64)),
        "the file has fc.bias, but config.json says bias false",
    ),
    "attention bias said": (EAGLE3, setting(attention_bias=True), "lack 'layers.0.self_attn.q_pro"),
    "unknown family": (EAGLE1, setting(model_type="mamba"), "unknown family, 'mamba'"),
    "unknown family in speculators": (SPECULATORS, in_layer(model_type="gemma3_text"), "unknown f"),
    "unknown activation": (EAGLE1, setting(hidden_act="relu2"), "hidden_act 'relu2'"),
    "dynamic rope": (
        EAGLE3,
        setting(rope_scaling={"type": "dynamic", "factor": 2.0}),
        "type 'dynamic' have no form",
    ),
    "llama3 rope without numbers": (
        EAGLE3,
        setting(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        "low_freq_factor: expected a number",
    ),
    "two bases": (
        SPECULATORS,
        in_layer(rope_theta=5.0),
        "rope_theta is 5.0 in one place and 1000000.0 in rope_parameters",
    ),
    "partial rope": (EAGLE3, setting(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
    "soft cap": (EAGLE3, setting(final_logit_softcapping=30.0), "final_logit_softcapping 30.0"),
    "scaled residual": (EAGLE1, setting(scale_depth=1.4), "scale_depth 1.4"),
    "last state alone": (
        EAGLE3,
        setting(eagle_config={"use_aux_hidden_state": False}),
        "use_aux_hidden_state is false",
    ),
    "taps outside": (
        SPECULATORS,
        setting(eagle_aux_hidden_state_layer_ids=[2, 4, 9]),
        "enters layer 9, but table has 8 layers",
    ),
    "too many taps": (
        SPECULATORS,
        setting(eagle_aux_hidden_state_layer_ids=[1, 2, 4, 5]),
        "fc reads 3 hidden states, but 4 layers are named",
    ),
    "taps twice": (
        SPECULATORS,
        setting(eagle_aux_hidden_state_layer_ids=[2, 2, 5]),
        "expected distinct layers",
    ),
    "taps of unknown meaning": (
        EAGLE3,
        setting(eagle_config={"eagle_aux_hidden_state_layer_ids": [3, 4, 5]}),
        "give --drafter-option taps=3,4,5 or taps=4,5,6",
    ),
    "residual not said": (
        SPECULATORS,
        unsaid("norm_before_residual"),
        "give --drafter-option norm_before_residual=true or =false",
    ),
    "window": (
        SPECULATORS,
        in_layer(layer_types=["sliding_attention"], sliding_window=64),
        "give --drafter-option sliding_window=64, or =0",
    ),
    "no layer config": (SPECULATORS, setting(transformer_layer_config=None), "expected an object"),
    "no sizes": (EAGLE3, unsaid("hidden_size"), "lacks hidden_"),
    "sizes as text": (EAGLE3, setting(hidden_size="64"), "hidden_size: expected a number"),
    "odd groups": (EAGLE3, setting(num_key_value_heads=3), "no multiple of num_key_value_heads 3"),
    "frequencies of another base": (
        EAGLE1,
        with_tensor("layers.0.self_attn.rotary_emb.inv_freq", torch.rand(8)),
        "disagrees with a rotary base of 10000",
    ),
    "two names": (
        EAGLE3,
        lambda config, tensors: tensors.update({"model.norm.weight": tensors["norm.weight"] + 1}),
        "stands under another name too",
    ),
    "one bias of three": (
        EAGLE3,
        with_tensor("midlayer.self_attn.q_proj.bias", torch.ones(64)),
        "disagree about the biases",
    ),
    "one norm of two": (
        EAGLE3,
        with_tensor("midlayer.self_attn.q_norm.weight", torch.ones(16)),
        "lack 'layers.0.self_attn.k_norm.weight'",
    ),
    # Other methods.
    "speculators of 2025": (SPECULATORS, setting(speculators_model_type="eagle"), "EAGLE-1 format"),
    "P-EAGLE": (SPECULATORS, setting(speculators_model_type="peagle"), "P-EAGLE: this method"),
    "P-EAGLE by its tensor": (
        EAGLE3,
        with_tensor("mask_hidden", torch.ones(64)),
        "P-EAGLE: this m",
    ),
    "DFlash": (SPECULATORS, setting(speculators_model_type="dflash2"), "DFlash: this method"),
    "DFlash by its config": (
        EAGLE3,
        setting(dflash_config={"block_size": 8}),
        "DFlash: this method",
    ),
    "DSpark": (SPECULATORS, setting(speculators_model_type="dspark"), "DSpark: this method"),
    "MTP": (SPECULATORS, setting(speculators_model_type="mtp"), "MTP: this method"),
    "MTP by its tensor": (
        EAGLE1,
        with_tensor("eh_proj.weight", torch.ones(2, 2)),
        "MTP: this meth",
    ),
    "Medusa": (EAGLE1, setting(medusa_num_heads=4), "Medusa: this method"),
    "Domino": (
        EAGLE1,
        setting(architectures=["DominoDraftModel"]),
        "architecture DominoDraftModel",
    ),
    "a new method": (
        SPECULATORS,
        setting(speculators_model_type="eagle7"),
        "'eagle7': this method",
    ),
    "quantised": (
        EAGLE3,
        setting(quantization_config={"quant_method": "compressed-tensors"}),
        "a quantised head: this method",
    ),
    "quantised in its layers": (
        SPECULATORS,
        in_layer(quantization_config={"bits": 4}),
        "a quantised head: this method",
    ),
    "quantised by its tensors": (
        EAGLE3,
        with_tensor("midlayer.self_attn.q_proj.weight_packed", torch.ones(2, dtype=torch.int32)),
        "a quantised head: this method",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_one_line_says_what_is_wrong(tmp_path: Path, what: str) -> None:
    name, change, says = CASES[what]
    assert says in message(made(tmp_path / "d", name, change), name)


def test_neutral_and_unknown_keys(tmp_path: Path) -> None:
    """Keys that change nothing are nothing to talk about; unknown ones are named."""

    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        config.update(logits_scaling=1.0, tokenizer_class="X", new_norm_everywhere=True, _note="x")
        config.update(
            architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=8
        )

    folder = made(tmp_path / "d", EAGLE1, change)
    drafter = load_folder(DrafterFiles(folder, "d"), Case(KEPT / EAGLE1).target)
    notes = drafter.describe()["drafter_notes"]
    assert notes == ["config.json: keys that are not known here: new_norm_everywhere"]


def test_choices_are_told_and_options_override_them(tmp_path: Path) -> None:
    change = setting(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}, norm_output=True)
    folder, target = made(tmp_path / "d", EAGLE3, change), Case(KEPT / EAGLE3).target
    drafter = load_folder(DrafterFiles(folder, "d"), target)
    said = drafter.describe()
    assert said["drafter_taps"] == [2, 4, 5]
    assert said["drafter_norm_output"] is True
    assert "SpecForge" in said["drafter_notes"][0]
    assert "taps=1,3,4" in said["drafter_notes"][1]
    options = {"taps": "1,3,4", "norm_output": "false", "rope_theta": "77"}
    said = load_folder(DrafterFiles(folder, "d", options), target).describe()
    assert said["drafter_taps"] == [1, 3, 4]
    assert said["drafter_norm_output"] is False
    assert said["drafter_rope"]["rope_theta"] == 77
    assert said["drafter_options"] == options
    assert "drafter_notes" not in said


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_missing_norm_before_residual_is_asked_for(tmp_path: Path, value: str) -> None:
    folder = made(tmp_path / "d", SPECULATORS, unsaid("norm_before_residual"))
    files = DrafterFiles(folder, "d", {"norm_before_residual": value})
    drafter: Any = load_folder(files, Case(KEPT / SPECULATORS).target)
    assert drafter.config.norm_before_residual is (value == "true")
    eagle = made(tmp_path / "e", EAGLE3, lambda config, _: None)
    drafter = load_folder(DrafterFiles(eagle, "e"), Case(KEPT / EAGLE3).target)
    assert drafter.config.norm_before_residual is False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"taps": "2,x"}, "expected ascending layer numbers"),
        ({"taps": "5,4,2"}, "expected ascending layer numbers"),
        ({"rope_theta": "nan"}, "expected a number"),
        ({"rope_theta": "0"}, "expected a number of at least 1"),
        ({"norm_output": "maybe"}, "expected true or false"),
        ({"speed": "9"}, "a drafter of kind eagle-3 has no such option; it has taps"),
    ],
)
def test_options_are_checked(options: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_folder(DrafterFiles(KEPT / EAGLE3, "d", options), Case(KEPT / EAGLE3).target)


def test_option_texts() -> None:
    assert parse_options(["taps=1,2", "norm-output=true"]) == {"taps": "1,2", "norm_output": "true"}
    for wrong in ("taps", "=3", "taps="):
        with pytest.raises(UsageError, match="expected KEY=VALUE"):
            parse_options([wrong])
    with pytest.raises(UsageError, match="given twice"):
        parse_options(["a=1", "a=2"])


def test_narrow_heads_bring_their_own_embeddings_and_head(tmp_path: Path) -> None:
    from plain_heads import head_shapes, random_tensors

    config = {
        "hidden_size": 32,
        "target_hidden_size": 64,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 1000,
    }
    tensors = random_tensors(head_shapes(True, 32, 64, 1000))
    (tmp_path / "config.json").write_text(json.dumps(config))
    for missing, says in (
        ("embed_tokens.weight", "target's embeddings are 64 wide, the head 32"),
        ("lm_head.weight", "target's head is 64 wide, the drafter 32"),
    ):
        whole = tensors | {"embed_tokens.weight": torch.ones(1000, 32)}
        del whole[missing]
        save_file(whole, tmp_path / "model.safetensors")
        assert says in message(tmp_path, EAGLE3)
