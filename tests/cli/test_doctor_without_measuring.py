"""``dynaspec doctor --no-measure``: everything but times, without loading the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dynaspec_cli.config import MOST_NODES
from dynaspec_cli.drafters import load
from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.main import cli


def doctor(model: Path, *args: str) -> dict[str, Any]:
    command = ["doctor", "--model", str(model), "--dtype", "float32", "--device", "cpu"]
    command += ["--no-measure", "--context", "100", "--json", *args]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Engine, "load", refuse)
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path / "cache"))


def test_the_shipped_drafter_is_found_and_counted(
    tiny_model_dir: Path, tiny_drafter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor(tiny_model_dir)["drafter"] is None
    shipped = ((tiny_drafter_dir, DrafterConfig.load(tiny_drafter_dir)),)
    monkeypatch.setattr(load, "_packaged", lambda: shipped)
    data = doctor(tiny_model_dir)
    assert data["drafter"]["folder"] == str(tiny_drafter_dir)
    parts = data["memory"]["parts_bytes"]
    assert parts["drafter"] == (tiny_drafter_dir / "model.safetensors").stat().st_size
    assert parts["shortlist_head"] == 0  # no bundle is shipped for it: nanospec


def test_a_gguf_file_is_judged_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "target"))
    from tiny_gguf import KV_HEADS, LAYERS, VOCAB, WIDTH, write_tiny_gguf

    write_tiny_gguf(tmp_path / "tiny.gguf")
    memory = doctor(tmp_path / "tiny.gguf")["memory"]
    parts = memory["parts_bytes"]
    # K and V of each layer, heads of 8 numbers of 4 bytes; 100 tokens, 8 nodes and the root.
    assert parts["kv_cache"] == 2 * LAYERS * KV_HEADS * 8 * 4 * (100 + MOST_NODES + 1)
    assert parts["verification_logits"] == (MOST_NODES + 1) * VOCAB * 4
    assert memory["total_bytes"] == sum(parts.values()) > parts["weights"] > 2 * VOCAB * WIDTH * 4
    assert memory["fits"] is True
    assert "note" not in memory  # its head has a hash: nothing is left open
    assert not (tmp_path / "cache" / "models").exists()
