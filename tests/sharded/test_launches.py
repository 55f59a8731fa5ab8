"""What torchrun starts that cannot run is refused in a line, before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dynaspec_cli.commands.registry import COMMANDS
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.main import cli
from dynaspec_cli.target.load import load
from dynaspec_cli.target.sharded.launch import Launch, launched
from dynaspec_cli.target.sharded.load import check_divisible, place_of


@pytest.fixture
def rank_0(monkeypatch: pytest.MonkeyPatch) -> Launch:
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "run"),
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "2"),
    ):
        monkeypatch.setenv(name, value)
    found = launched()
    assert found == Launch(0, 2, 0, 2)
    return found


def test_processes_of_their_own(monkeypatch: pytest.MonkeyPatch, rank_0: Launch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(DynaSpecError, match="torchrun: expected numbers"):
        launched()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # RANK and WORLD_SIZE may mean something else
    assert launched() is None


@pytest.mark.parametrize("name", [name for name, entry in COMMANDS.items() if not entry.sharded])
def test_commands_of_one_process(rank_0: Launch, name: str) -> None:
    found = CliRunner().invoke(cli, [name, "--help"])
    assert found.exit_code == 2
    assert f"dynaspec {name}: runs in one process; torchrun is for generate" in found.output


@pytest.mark.parametrize("option", [("--workers", "2"), ("--ray", "local")])
def test_many_processes_of_many_prompts(
    rank_0: Launch, tmp_path: Path, option: tuple[str, str]
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": 1, "prompt": "a"}\n', encoding="utf-8")
    out = ("--out", str(tmp_path / "o.jsonl"))
    found = CliRunner().invoke(cli, ["generate", "--prompt-file", str(prompts), *out, *option])
    assert found.exit_code == 2
    assert f"{option[0]}: not under torchrun" in found.output


def test_a_gguf_file(rank_0: Launch, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(32))
    with pytest.raises(UsageError, match="a GGUF file runs in one process; under torchrun give"):
        load(str(file))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "world", "words"),
    [
        (4, 2, 3, "4 attention heads, which 3 processes cannot share; take --nproc-per-node 1 or"),
        (8, 2, 4, "2 key-value heads, which 4 processes cannot share; take --nproc-per-node 1 or"),
        (9, 3, 2, "9 attention heads, which 2 processes cannot share; take .*-node 1 or 3$"),
        (4, 2, 2, ""),
    ],
)
def test_numbers_that_do_not_divide_the_heads(
    tiny_model_dir: Path, tmp_path: Path, heads: int, kv_heads: int, world: int, words: str
) -> None:
    config = json.loads((tiny_model_dir / "config.json").read_text(encoding="utf-8"))
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if not words:
        check_divisible(tmp_path, "tiny", world)
        return
    with pytest.raises(DynaSpecError, match=words):
        check_divisible(tmp_path, "tiny", world)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place_of(Launch(1, 2, 1, 2), "auto") == torch.device("cpu")
    with pytest.raises(DynaSpecError, match="sees no GPU"):
        place_of(Launch(1, 2, 1, 2), "cuda")
    with pytest.raises(UsageError, match="GPU of its local rank"):
        place_of(Launch(1, 2, 1, 2), "cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place_of(Launch(3, 4, 1, 2), "auto") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES="):
        place_of(Launch(1, 2, 1, 2), "cpu")
    with pytest.raises(DynaSpecError, match="4 processes here, which has 2 GPUs"):
        place_of(Launch(1, 4, 1, 4), "auto")
