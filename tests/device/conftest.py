"""The pretended GPU lies with the checks of the CUDA path, the families with the targets' tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "cuda_check"), str(ROOT / "tests" / "target")]


@pytest.fixture(scope="session")
def published_head(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Callable[[str], Path]:
    """Folder of an "eagle-1" or "eagle-3" head for the tiny model."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        from transformers import AutoModelForCausalLM

        from .parts import write_head

        if method not in made:
            model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
            made[method] = write_head(method, tmp_path_factory.mktemp("head"), model)
        return made[method]

    return make
