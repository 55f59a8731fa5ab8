"""Tiny random models of the supported families, saved once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_families import COMMON, randomise


def _configs() -> dict[str, Any]:
    from transformers import (
        Gemma2Config,
        Gemma3TextConfig,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
    )

    window = {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    qwen_window = {**window, "use_sliding_window": True}
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return {
        "gemma2": Gemma2Config(
            **COMMON,
            sliding_window=8,
            num_hidden_layers=3,
            query_pre_attn_scalar=24,
            final_logit_softcapping=4.0,
            attn_logit_softcapping=2.0,
        ),
        "mistral": MistralConfig(
            **COMMON, num_hidden_layers=2, sliding_window=8, tie_word_embeddings=False
        ),
        "gemma3": Gemma3TextConfig(
            **COMMON,
            **window,
            num_hidden_layers=3,
            query_pre_attn_scalar=24,
            final_logit_softcapping=4.0,
        ),
        "llama": LlamaConfig(**COMMON, num_hidden_layers=2, tie_word_embeddings=False),
        "llama3": LlamaConfig(
            **COMMON, num_hidden_layers=2, rope_parameters=llama3, tie_word_embeddings=True
        ),
        "qwen2": Qwen2Config(
            **{**COMMON, "head_dim": 8},
            **qwen_window,
            num_hidden_layers=3,
            tie_word_embeddings=True,
        ),
        "qwen3": Qwen3Config(
            **COMMON, **qwen_window, num_hidden_layers=3, tie_word_embeddings=False
        ),
    }


FAMILIES = ("gemma3", "llama", "llama3", "qwen2", "qwen3", "gemma2", "mistral")


@pytest.fixture(scope="session")
def family_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's tiny random model in float32 (no tokenizer)."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            import torch
            from transformers import AutoModelForCausalLM

            folder = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng():
                torch.manual_seed(FAMILIES.index(family))
                model = AutoModelForCausalLM.from_config(_configs()[family])
                randomise(model)
            model.save_pretrained(folder)
            made[family] = folder
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
