"""A GGUF file as ``--drafter``."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.errors import DynaSpecError


def test_a_gguf_file_drafts(tiny_gguf: Path, cache_dir: Path) -> None:
    """For the model that it holds: every draft is accepted."""
    engine = Engine.load(str(tiny_gguf), "float32", "cpu", drafter=str(tiny_gguf))
    assert engine.drafter is not None
    assert engine.drafter.name == str(tiny_gguf)
    assert engine.drafter.folder == tiny_gguf
    config = GenerationConfig(
        41,
        sampling=SamplingConfig(0.0),
        tree=TreeConfig("chain", size=3, depth=3, width=1),
        shortlist=ShortlistConfig("full"),
    )
    result = engine.complete([5, 6, 7], config)
    assert result.token_ids == engine.complete([5, 6, 7], config, speculative=False).token_ids
    assert result.mean_acceptance_length == 4.0 or result.finish_reason == "eos"


def test_a_gguf_file_of_another_tokenizer_is_refused(
    tiny_gguf: Path, tiny_model_dir: Path, cache_dir: Path
) -> None:
    with pytest.raises(DynaSpecError, match=r"its tokenizer is not that of .*: token 0 is"):
        Engine.load(str(tiny_model_dir), "float32", "cpu", drafter=str(tiny_gguf))


def test_a_gguf_file_that_is_not_there(tiny_model_dir: Path) -> None:
    with pytest.raises(DynaSpecError, match=r"--drafter none/such\.gguf: no such file"):
        Engine.load(str(tiny_model_dir), "float32", "cpu", drafter="none/such.gguf")
