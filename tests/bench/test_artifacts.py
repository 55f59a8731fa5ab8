"""What a run is known by: hashes of everything that it loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dynaspec_cli.bench import lab, provenance
from dynaspec_cli.bench.spec import parse_specs
from dynaspec_cli.engine.api import Engine


def artifacts(
    model: Path, *, drafter: str = "none", assistant: str | None = None, specs: tuple[str, ...] = ()
) -> dict[str, Any]:
    engine = Engine.load(str(model), dtype="float32", device="cpu", drafter=drafter)
    return lab._artifacts(str(model), assistant, [engine], parse_specs(["ar", *specs]))


def change(path: Path) -> None:
    """One bit of the file's last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_another_model_of_the_same_name_has_other_hashes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "trainer_state.json").write_text("{}")  # is not loaded
    before = artifacts(folder)
    assert {f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")} <= {
        *before
    }
    assert not any("trainer_state" in name for name in before)
    change(folder / "model.safetensors")
    after = artifacts(folder)
    assert [name for name in before if before[name] != after[name]] == ["model/model.safetensors"]


def test_a_hub_drafter_is_known_by_what_was_downloaded(
    tiny_model_dir: Path, tiny_drafter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "0123abcd"
    shutil.copytree(tiny_drafter_dir, snapshot)
    monkeypatch.setattr("dynaspec_cli.drafters.load.fetch_drafter", lambda name, what: snapshot)
    before = artifacts(tiny_model_dir, drafter="org/draft-x")
    change(snapshot / "model.safetensors")
    after = artifacts(tiny_model_dir, drafter="org/draft-x")
    differing = [name for name in before if before[name] != after[name]]
    assert differing == ["0123abcd/model.safetensors"]


def test_assistant_and_bundles_count_and_equal_names_do_not_hide_each_other(
    tiny_model_dir: Path, tiny_drafter_dir: Path, tmp_path: Path
) -> None:
    copies = [tmp_path / name / "model" for name in "ab"]
    for copy in copies:
        shutil.copytree(tiny_model_dir, copy)
    change(copies[1] / "model.safetensors")
    (tmp_path / "map.json").write_text("[2, 3]")
    found = artifacts(
        copies[0],
        drafter=str(tiny_drafter_dir),
        assistant=str(copies[1]),
        specs=(f"{tmp_path}/map.json+eagle2", "full+eagle2"),
    )
    first, second = (found[f"model/model.safetensors{mark}"] for mark in ("", " (2)"))
    assert first["sha256"] != second["sha256"]
    assert "model/config.json (2)" not in found  # the same bytes
    assert "map.json" in found
    assert f"{tiny_drafter_dir.name}/model.safetensors" in found


def test_of_a_large_file_the_ends_and_blocks_between_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "HASH_LIMIT", 1000)
    monkeypatch.setattr(provenance, "BLOCK_BYTES", 16)
    path = tmp_path / "weights.safetensors"

    def digest(data: bytes) -> dict[str, Any]:
        path.write_bytes(data)
        return provenance.file_hashes([path], tmp_path)[path.name]

    assert set(digest(bytes(1000))) == {"bytes", "sha256"}
    whole = digest(bytes(64_000))
    assert set(whole) == {"bytes", "sha256_of_blocks"}
    for at in (0, 63_999, 63_984 * 31 // 63):
        changed = bytearray(64_000)
        changed[at] = 1
        assert digest(bytes(changed)) != whole
    assert digest(bytes(64_001)) != whole
