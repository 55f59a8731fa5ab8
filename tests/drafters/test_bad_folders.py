"""Folders that hold no drafter, and weights that would run code: one line each."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import KEPT, Case
from safetensors.torch import save_file

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.errors import DynaSpecError

EAGLE3 = "eagle3-llama"


class Exploit:
    """Runs when it is unpickled by a careless reader."""

    def __reduce__(self) -> Any:
        return (Path.write_text, (Path("/tmp/dynaspec-exploited"), "x"))


@pytest.mark.parametrize(
    ("save", "says"),
    [
        (lambda path: torch.save({"fc.weight": Exploit()}, path), "refused, it is no pickle of"),
        (lambda path: path.write_bytes(pickle.dumps(Exploit())), "refused, it is no pickle of"),
        (lambda path: torch.save([torch.ones(2)], path), "expected a state dict .* got list"),
        (
            lambda path: torch.save({"state_dict": {"a": torch.ones(2)}}, path),
            "'state_dict' holds dict",
        ),
        (lambda path: torch.save({}, path), "got an empty one"),
        (lambda path: torch.save({3: torch.ones(2)}, path), "but 3 holds Tensor"),
        (
            lambda path: path.write_bytes(b"not a pickle"),
            "pytorch_model.bin: (refused|not a readable)",
        ),
        (lambda path: path.write_bytes(b"PK\x03\x04broken"), "not a readable PyTorch file"),
    ],
)
def test_pickles_that_are_no_state_dict(tmp_path: Path, save: Any, says: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    save(tmp_path / "pytorch_model.bin")
    with pytest.raises(DynaSpecError, match=says) as caught:
        load_folder(DrafterFiles(tmp_path, "d"), Case(KEPT / EAGLE3).target)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/dynaspec-exploited").exists()


def test_folders_that_are_no_drafter(tmp_path: Path) -> None:
    target = Case(KEPT / EAGLE3).target
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DynaSpecError, match="of no kind that is known; expected dynaspec-eagle-1"):
        load_folder(DrafterFiles(tmp_path, "d"), target)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(DynaSpecError, match="2 safetensors files and neither"):
        load_folder(DrafterFiles(tmp_path, "d"), target)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(DynaSpecError, match="not a readable safetensors file"):
        load_folder(DrafterFiles(tmp_path, "d"), target)


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"fc.weight": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DynaSpecError, match="not a file"):
        load_folder(DrafterFiles(tmp_path, "d"), Case(KEPT / EAGLE3).target)
