"""What a model's makers recommend: filters, and what dynaspec does not apply."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target import recommended as module
from dynaspec_cli.target.recommended import FILE, NEUTRAL, recommended, unmet_notice
from dynaspec_cli.target.resolve import ModelSource, resolve_model


def folder(tmp_path: Path, config: Any) -> ModelSource:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    return ModelSource("some", folder=tmp_path)


def test_the_default_models() -> None:
    found = recommended(resolve_model(None))
    assert found is not None
    assert found.filters == {"temperature": 1.0, "top_k": 64, "top_p": 0.95}
    assert found.unmet == ()
    assert unmet_notice(resolve_model(None)) is None


def test_no_file_no_recommendation(tmp_path: Path) -> None:
    assert recommended(ModelSource("some", folder=tmp_path)) is None
    assert recommended(folder(tmp_path, {"eos_token_id": 3})) is None
    assert unmet_notice(ModelSource("some", folder=tmp_path)) is None


def test_filters_count_only_where_the_model_samples(tmp_path: Path) -> None:
    filters = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1}
    sampled = recommended(folder(tmp_path, {"do_sample": True, **filters}))
    assert sampled is not None
    assert sampled.filters == filters
    greedy = recommended(folder(tmp_path, filters))
    assert greedy is not None
    assert greedy.filters == {"temperature": 0.0}


def test_what_is_not_given_is_off(tmp_path: Path) -> None:
    found = recommended(folder(tmp_path, {"do_sample": True, "top_k": 50, "top_p": None}))
    assert found is not None
    assert found.filters == {"temperature": 1.0, "top_k": 50}


@pytest.mark.parametrize("sampled", [True, False])
def test_every_setting_that_changes_a_distribution_is_named(tmp_path: Path, sampled: bool) -> None:
    """Under greedy decoding too: a penalty changes which token is best."""
    others = {"min_length": 3, "num_beams": 4, "mirostat": 2}
    values = {name: others.get(name, [7] if neutral is None else 1.25)
              for name, neutral in NEUTRAL.items()}  # fmt: skip
    found = recommended(folder(tmp_path, {"do_sample": sampled, **values}))
    assert found is not None
    assert found.unmet == tuple(f"{name}={value}" for name, value in values.items())
    assert {"repetition_penalty=1.25", "suppress_tokens=[7]"} <= set(found.unmet)
    notice = unmet_notice(folder(tmp_path, {"do_sample": sampled, **values}))
    assert notice is not None
    assert all(text in notice for text in found.unmet)
    assert "does not apply" in notice


def test_neutral_values_are_not_named(tmp_path: Path) -> None:
    source = folder(tmp_path, {"do_sample": True, **NEUTRAL, "suppress_tokens": []})
    found = recommended(source)
    assert found is None or found.unmet == ()
    assert unmet_notice(source) is None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for text, message in (("{", "expected a JSON object"), ("[1]", "got a list")):
        source = folder(tmp_path, text)
        with pytest.raises(DynaSpecError, match=message):
            recommended(source)
        notice = unmet_notice(source)
        assert notice is not None
        assert message in notice
    for value in ("hot", True):
        with pytest.raises(DynaSpecError, match="temperature: expected a number"):
            recommended(folder(tmp_path, {"temperature": value}))


def test_keys_of_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {
            "general.sampling.temp": 0.7, "general.sampling.top_k": 40,
            "general.sampling.penalty_repeat": 1.1, "general.sampling.penalty_last_n": 64,
            "general.sampling.mirostat": 2, "general.name": "some",
    }  # fmt: skip

    monkeypatch.setattr(module, "open_gguf", lambda pieces: SimpleNamespace(keys=keys))
    found = recommended(ModelSource("some", gguf=tmp_path / "some.gguf"))
    assert found is not None
    assert found.filters == {"temperature": 0.7, "top_k": 40}
    assert found.unmet == ("repetition_penalty=1.1", "mirostat=2")
    keys = {"general.name": "some"}
    assert recommended(ModelSource("some", gguf=tmp_path / "some.gguf")) is None
