"""Tiny random models of the supported families, saved once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_families import save_family


@pytest.fixture(scope="session")
def family_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's tiny random model in float32 (no tokenizer)."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_family(family, made[family])
        return made[family]

    return make


@pytest.fixture(scope="session")
def hf_model(family_dir: Callable[[str], Path]) -> Callable[[str], Any]:
    """The same model as ``transformers`` loads it: the oracle."""
    made: dict[str, Any] = {}

    def make(family: str) -> Any:
        if family not in made:
            import torch
            from transformers import AutoModelForCausalLM

            made[family] = AutoModelForCausalLM.from_pretrained(
                family_dir(family), dtype=torch.float32
            ).eval()
        return made[family]

    return make


@pytest.fixture(scope="session")
def make_target(family_dir: Callable[[str], Path]) -> Callable[[str, str], Any]:
    """A target of a family: ``path`` "native", "static" or "transformers", float32."""
    made: dict[tuple[str, str], Any] = {}

    def make(family: str, path: str) -> Any:
        key = (family, path)
        if key not in made:
            import torch

            from dynaspec_cli.target.load import load_target, load_transformers
            from dynaspec_cli.target.native_spec import native_spec, read_config
            from dynaspec_cli.target.static.target import load_static
            from dynaspec_cli.target.weights import WeightFiles

            folder, cpu = family_dir(family), torch.device("cpu")
            if path == "native":
                made[key] = load_target(folder, family, torch.float32, cpu)
            elif path == "static":
                spec = native_spec(read_config(folder))
                assert not isinstance(spec, str)
                files, known = WeightFiles(folder), make(family, "native").head_hash()
                made[key] = load_static(files, family, spec, torch.float32, cpu, known)
            else:
                made[key] = load_transformers(folder, family, torch.float32, cpu)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole GGUF file of a tiny Llama."""
    from tiny_gguf import write_tiny_gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder of one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(folder))
    return folder
