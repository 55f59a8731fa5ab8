"""Heads against vectors of the reference implementations; and mistakes that these must show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_cases as golden
import pytest
import torch
from golden_cases import KEPT, Case

from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.drafters.eagle1 import Eagle1Drafter
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.registry import kind_of
from dynaspec_cli.errors import DynaSpecError

EAGLE1, EAGLE3, SPECULATORS = KINDS = (
    "eagle1-llama-nobias",
    "eagle3-llama",
    "speculators-eagle3.1-qwen3",
)


@pytest.fixture(scope="module")
def case() -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        return made.setdefault(name, Case(KEPT / name))

    return make


def check(case: Case, drafter: Any) -> None:
    """All that a kept case says."""
    golden.check_prefill(case, drafter)
    golden.check_chain(case, drafter)
    if "tree.depth" in case.expected:
        golden.check_fixed_tree(case, drafter)
    else:
        golden.check_beams(case, drafter)


@pytest.mark.parametrize("name", KINDS)
def test_a_head_agrees_with_its_reference(case: Callable[[str], Case], name: str) -> None:
    check(case(name), case(name).drafter())


@pytest.mark.parametrize("name", [EAGLE1, EAGLE3])
def test_a_round_forgets_the_one_before(case: Callable[[str], Case], name: str) -> None:
    """A wide tree, then further committed pairs, then the vectors' tree."""
    c, drafter = case(name), case(name).drafter()
    states, known = c.states(drafter), c.expected["embedding.ids"][:8].tolist()
    state = drafter.begin(c.prompt, 64)
    drafter.read(state, states[:20], c.following[:20])
    drafter.step(state, golden.frontier(known, [-1] * 8, [0] * 8))
    drafter.step(state, golden.frontier(known, [7, 6, 5, 4, 3, 2, 1, 0], list(range(8))))
    drafter.read(state, states[20:], c.following[20:])
    golden.check_beams(c, drafter, state)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(EAGLE1, "eagle-1"), (EAGLE3, "eagle-3"), (SPECULATORS, "speculators-eagle-3")],
)
def test_kinds_are_told_apart_by_config_and_tensors(name: str, kind: str) -> None:
    files = DrafterFiles(KEPT / name, name)
    files.config["architectures"] = ["SomethingElse"]
    assert kind_of(files)[0] == kind


def test_older_config_means_the_same_head(case: Callable[[str], Case], tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta and rope_scaling where 5 writes rope_parameters."""
    shutil.copytree(KEPT / SPECULATORS, tmp_path / "old")
    older = tmp_path / "old" / "config.transformers4.json"
    older.replace(tmp_path / "old" / "config.json")
    old = Case(tmp_path / "old", case(SPECULATORS).target)
    drafter = old.drafter()
    assert drafter.config == case(SPECULATORS).drafter().config
    golden.check_chain(old, drafter)


def test_pickled_weights_give_the_same_head(case: Callable[[str], Case], tmp_path: Path) -> None:
    from collections import OrderedDict

    from safetensors.torch import load_file

    shutil.copytree(KEPT / EAGLE3, tmp_path / "bin")
    stored = tmp_path / "bin" / "model.safetensors"
    torch.save(OrderedDict(load_file(stored)), tmp_path / "bin" / "pytorch_model.bin")
    stored.unlink()
    (tmp_path / "bin" / "modeling_eagle3.py").write_text("raise SystemExit(3)\n")
    pickled = Case(tmp_path / "bin", case(EAGLE3).target)
    check(pickled, pickled.drafter())


@pytest.mark.parametrize("name", KINDS)
def test_names_of_other_libraries(case: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(KEPT / name, tmp_path / "renamed")
    stored = tmp_path / "renamed" / "model.safetensors"
    aux = {"fc_norm.0": "aux_norm_low", "fc_norm.1": "aux_norm_mid", "fc_norm.2": "aux_norm_high"}
    tensors = {}
    for key, tensor in load_file(stored).items():
        stem, _, last = key.rpartition(".")
        new = f"{aux.get(stem, stem)}.{last}" if stem else key
        tensors[new if key in ("d2t", "t2d") else f"model.{new}"] = tensor
    save_file(tensors, stored)
    renamed = Case(tmp_path / "renamed", case(name).target)
    check(renamed, renamed.drafter())


# Mistakes.


def fails(case: Case, drafter: Any) -> None:
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(case, drafter)


@pytest.mark.parametrize("name", [EAGLE1, EAGLE3])
def test_the_targets_rope_base(case: Callable[[str], Case], name: str) -> None:
    fails(case(name), case(name).drafter(rope_theta="500000"))


def test_feedback_after_the_norm(case: Callable[[str], Case]) -> None:
    fails(case(EAGLE3), case(EAGLE3).drafter(norm_output="true"))


def test_feedback_before_the_norm(case: Callable[[str], Case]) -> None:
    fails(case(SPECULATORS), case(SPECULATORS).drafter(norm_output="false"))


def test_residual_after_the_norm(case: Callable[[str], Case]) -> None:
    fails(case(EAGLE3), case(EAGLE3).drafter(norm_before_residual="true"))


def test_embedding_and_feature_swapped(
    case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Eagle1Drafter.forward
    monkeypatch.setattr(
        Eagle1Drafter,
        "forward",
        lambda self, states, embedded, layer: original(self, embedded, states, layer),
    )
    fails(case(EAGLE1), case(EAGLE1).drafter())


def test_taps_in_another_order(
    case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = Case(KEPT / EAGLE3, case(EAGLE3).target)
    taps = shuffled.expected["target.taps"].chunk(3, 1)
    shuffled.expected["target.taps"] = torch.cat(taps[::-1], 1)
    fails(shuffled, shuffled.drafter())


def test_absolute_map_read_as_offsets(
    case: Callable[[str], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d2t as absolute ids disagrees with t2d; without t2d the draft tokens are others."""
    monkeypatch.setattr(VocabMap, "from_offsets", VocabMap.from_absolute)
    with pytest.raises(DynaSpecError, match=r"d2t: (disagrees with t2d|token id \d+ occurs)"):
        case(EAGLE3).drafter()


def test_an_identity_map_under_the_wrong_convention(case: Callable[[str], Case]) -> None:
    ids = case(EAGLE3).drafter().head.vocab.ids
    with pytest.raises(DynaSpecError, match="d2t"):
        VocabMap.from_head(ids, VocabMap(ids, 1000).mask(), 320, 1000)


def test_which_taps() -> None:
    """taps.json's cases: numbers are the layers whose inputs are read."""
    from dynaspec_cli.drafters.published_taps import read_taps

    def layers(config: dict[str, Any], speculators: bool, depth: int) -> tuple[int, ...]:
        eagle = config.get("eagle_config", {})
        taps = read_taps(config, eagle, {}, set(), speculators, "here")
        return taps.of(depth, "target", "here")

    key = "eagle_aux_hidden_state_layer_ids"
    assert layers({}, False, 8) == (2, 4, 5)
    assert layers({key: None}, True, 8) == (2, 4, 5)
    assert layers({key: [1, 3, 6, 8]}, True, 8) == (1, 3, 6, 8)
    assert layers({"eagle_config": {key: [1, 11, 21]}}, False, 24) == (2, 12, 22)
    assert layers({"eagle_config": {key: [2, 30, 58]}}, False, 61) == (2, 30, 58)
    for depth, taps in {7: (2, 3, 4), 32: (2, 16, 29), 80: (2, 40, 77)}.items():
        assert layers({}, False, depth) == taps
    for depth in (3, 4, 5, 6):
        with pytest.raises(DynaSpecError, match="names no three different ones"):
            layers({}, False, depth)
    with pytest.raises(DynaSpecError, match=r"means the inputs .* give --drafter-option taps=3,9"):
        layers({"eagle_config": {key: [3, 9, 20]}}, False, 24)
