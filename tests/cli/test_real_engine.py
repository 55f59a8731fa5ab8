"""``dynaspec generate`` and ``dynaspec doctor`` with the real engine on a tiny random model."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dynaspec_cli.config import MOST_NODES
from dynaspec_cli.main import cli

from .conftest import ROOT

PROMPT = "The quick brown fox"


@pytest.fixture
def tiny(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """``tiny("generate", ...)`` in this process with ``--model`` (float32, CPU)."""
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DYNASPEC_DTYPE", "float32")
    monkeypatch.setenv("DYNASPEC_DEVICE", "cpu")

    def invoke(command: str, *args: str | Path, model: Path = tiny_model_dir) -> Any:
        return CliRunner().invoke(cli, [command, "--model", str(model), *map(str, args)])

    return invoke


def reference(folder: Path, new_tokens: int) -> list[int]:
    """Greedy token ids by ``transformers`` itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return list(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("shortlist", ["full", "nanospec"])
def test_greedy_text_is_the_models_own(
    tiny: Callable[..., Any],
    tiny_model_dir: Path,
    tiny_drafter_dir: Path,
    byte_level_tokenizer: Any,
    shortlist: str,
) -> None:
    result = tiny(
        "generate", PROMPT, "--drafter", tiny_drafter_dir, "--shortlist", shortlist,
        "--tree-size", "8", "--max-new-tokens", "40", "--compare", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["token_ids"] == reference(tiny_model_dir, 40)
    assert data["identical"] is True
    assert data["first_divergence"] is None
    assert data["text"] == byte_level_tokenizer.decode(data["token_ids"])
    assert data["num_spec_steps"] > 0
    assert data["num_draft_tokens"] > data["num_accepted_draft_tokens"]
    settings = data["settings"]
    assert settings["shortlist"] == shortlist
    assert settings["dtype"] == "float32"
    assert "kernels" in settings


def test_without_a_drafter(tiny: Callable[..., Any], tiny_model_dir: Path) -> None:
    off = tiny("generate", PROMPT, "--max-new-tokens", "12", "--json", "--drafter", "none")
    data = json.loads(off.stdout)
    assert data["token_ids"] == reference(tiny_model_dir, 12)
    assert (data["num_spec_steps"], data["mean_acceptance_length"]) == (0, 1.0)
    assert data["settings"]["drafter"] == "none"


def test_a_model_without_a_drafter_is_drafted_by_lookup(
    tiny: Callable[..., Any], tiny_model_dir: Path
) -> None:
    result = tiny("generate", PROMPT, "--max-new-tokens", "12", "--json")
    data = json.loads(result.stdout)
    assert data["token_ids"] == reference(tiny_model_dir, 12)
    assert data["num_spec_steps"] > 0
    assert data["settings"]["drafter"] == data["settings"]["drafter_kind"] == "lookup"
    assert data["settings"]["shortlist"] == "none"
    assert data["mean_shortlist_size"] is None
    shown = tiny("generate", PROMPT, "--max-new-tokens", "12")
    assert shown.stdout == data["text"] + "\n"
    assert "no drafter ships" in shown.stderr
    compared = tiny("generate", PROMPT, "--max-new-tokens", "12", "--json", "--compare")
    assert json.loads(compared.stdout)["identical"] is True


def test_streamed_text_with_a_stop(tiny: Callable[..., Any], tiny_drafter_dir: Path) -> None:
    options = ("--drafter", tiny_drafter_dir, "--shortlist", "full", "--max-new-tokens", "40")
    whole = json.loads(tiny("generate", PROMPT, *options, "--json").stdout)["text"]
    stop = whole[20:23]
    cut = json.loads(tiny("generate", PROMPT, *options, "--json", "--stop", stop).stdout)
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"
    assert tiny("generate", PROMPT, *options, "--stop", stop).stdout == cut["text"] + "\n"


def test_seed_reproduces(tiny: Callable[..., Any], tiny_drafter_dir: Path) -> None:
    def sample(seed: int) -> list[int]:
        result = tiny(
            "generate", PROMPT, "--drafter", tiny_drafter_dir, "--shortlist", "full",
            "--temperature", "1", "--max-new-tokens", "20", "--json", "--seed", str(seed),
        )  # fmt: skip
        return list(json.loads(result.stdout)["token_ids"])

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def one_line(result: Any, code: int, *parts: str) -> None:
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def test_prompt_longer_than_the_context(tiny: Callable[..., Any]) -> None:
    one_line(tiny("generate", "word " * 400), 1, "256")


def test_chat_without_a_template(tiny: Callable[..., Any]) -> None:
    one_line(tiny("generate", PROMPT, "--chat"), 1, "chat template")


def test_missing_model(tiny: Callable[..., Any], tmp_path: Path) -> None:
    one_line(tiny("generate", PROMPT, model=tmp_path / "none"), 1, "no such file or folder")
    one_line(tiny("generate", PROMPT, model=tmp_path / "none.gguf"), 1, "no such file")


def test_unknown_model_offline(tiny: Callable[..., Any]) -> None:
    one_line(
        tiny("generate", PROMPT, model=Path("nobody/no-such-model")), 1, "nobody/no-such-model"
    )


def test_folder_without_weights(
    tiny: Callable[..., Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    one_line(tiny("generate", PROMPT, model=tmp_path), 1, "no weights")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    one_line(tiny("generate", PROMPT, model=tmp_path), 1, "pickle")


def test_corrupt_weights(tiny: Callable[..., Any], tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    one_line(tiny("generate", PROMPT, model=tmp_path), 1, str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"nothing"],
    ids=["empty", "truncated", "corrupt", "other"],
)
def test_broken_gguf(tiny: Callable[..., Any], tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    one_line(tiny("generate", PROMPT, model=path), 1, "broken.gguf")


def altered(source: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": 64}, "hidden size"),
        ({"vocab_size": 401}, "vocabulary"),
        ({"head_hash": "0" * 64}, "hash"),
        ({"format": "other"}, "no kind that is known"),
    ],
)
def test_drafter_of_another_target(
    tiny: Callable[..., Any],
    tiny_drafter_dir: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    part: str,
) -> None:
    folder = altered(tiny_drafter_dir, tmp_path, **changes)
    one_line(tiny("generate", PROMPT, "--drafter", folder), 1, part)


def test_pickled_or_missing_drafter(
    tiny: Callable[..., Any], tiny_drafter_dir: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_drafter_dir / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    one_line(tiny("generate", PROMPT, "--drafter", tmp_path), 1, "pickle")
    one_line(tiny("generate", PROMPT, "--drafter", tmp_path / "none"), 1, "none")


def test_shortlist_without_a_bundle(tiny: Callable[..., Any], tiny_drafter_dir: Path) -> None:
    options = ("--drafter", tiny_drafter_dir, "--shortlist", "dynaspec")
    one_line(tiny("generate", PROMPT, *options), 1, "build-clusters --model MODEL --corpus FILE")


def test_default_shortlist_without_a_bundle_is_announced(
    tiny: Callable[..., Any], tiny_drafter_dir: Path
) -> None:
    result = tiny("generate", PROMPT, "--drafter", tiny_drafter_dir, "--max-new-tokens", "8")
    assert result.exit_code == 0, result.stderr
    assert "--shortlist nanospec" in " ".join(result.stderr.split())


def test_shortlist_larger_than_the_vocabulary(
    tiny: Callable[..., Any], tiny_drafter_dir: Path
) -> None:
    options = ("--shortlist", "nanospec", "--shortlist-size", "401")
    one_line(tiny("generate", PROMPT, "--drafter", tiny_drafter_dir, *options), 2, "401")


def bundle(folder: Path, drafter: Path, **changes: Any) -> Path:
    """A frequency bundle for the drafter's target, or for another one by ``changes``."""
    import torch

    from dynaspec_cli.checkpoints.bundle import BundleConfig, ShortlistBundle

    made_for = json.loads((drafter / "config.json").read_text(encoding="utf-8"))
    facts = {key: made_for[key] for key in ("vocab_size", "hidden_size", "head_hash")}
    config = BundleConfig(method="fr-spec", target="another", **{**facts, **changes})
    ShortlistBundle(config, frequency=torch.arange(300)).save_pretrained(folder)
    return folder


def test_bundle_from_a_folder(
    tiny: Callable[..., Any], tiny_model_dir: Path, tiny_drafter_dir: Path, tmp_path: Path
) -> None:
    folder = bundle(tmp_path / "bundle", tiny_drafter_dir)
    result = tiny(
        "generate", PROMPT, "--drafter", tiny_drafter_dir, "--shortlist", folder,
        "--shortlist-size", "100", "--tree-size", "8", "--max-new-tokens", "20", "--json",
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert data["mean_shortlist_size"] == 100
    assert data["token_ids"] == reference(tiny_model_dir, 20)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": 64}, "hidden size 64"),
        ({"vocab_size": 401}, "vocabulary size 401"),
        ({"head_hash": "0" * 64}, "another head"),
    ],
)
def test_bundle_of_another_target(
    tiny: Callable[..., Any],
    tiny_drafter_dir: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    part: str,
) -> None:
    folder = bundle(tmp_path / "bundle", tiny_drafter_dir, **changes)
    options = ("--drafter", tiny_drafter_dir, "--shortlist", folder)
    one_line(tiny("generate", PROMPT, *options), 1, part)


class _Harmful:
    """A pickle that would leave a file behind if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["map.pt", "map.bin"])
def test_pickle_is_never_executed(
    tiny: Callable[..., Any], tiny_drafter_dir: Path, tmp_path: Path, name: str
) -> None:
    import pickle

    (tmp_path / name).write_bytes(pickle.dumps(_Harmful(tmp_path / "executed"), 2))
    options = ("--drafter", tiny_drafter_dir, "--shortlist", tmp_path / name)
    one_line(tiny("generate", PROMPT, *options), 1, name)
    one_line(tiny("generate", PROMPT, model=tmp_path / name), 1, name)
    assert not (tmp_path / "executed").exists()


def test_gguf_needs_no_room_on_the_disk(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    from target.tiny_gguf import write_tiny_gguf

    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    usage = shutil.disk_usage(tmp_path)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        patch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path / "file" / "cache"))
        result = tiny("generate", "abc", "--max-new-tokens", "4", "--json", model=path)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["new_tokens"] <= 4
    path.write_bytes(path.read_bytes()[:-1000])
    one_line(tiny("generate", PROMPT, model=path), 1, "truncated")


def test_a_program_of_its_own(
    program: Callable[..., subprocess.CompletedProcess[str]], tiny_model_dir: Path
) -> None:
    """Standard output holds the result alone, from a pipe, in a fresh process."""
    done = program(
        "generate", "--model", tiny_model_dir, "--dtype", "float32", "--max-new-tokens", "5",
        "--json", stdin=PROMPT + "\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_tokens"] == 5
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_program_of_its_own(tiny_model_dir: Path, number: signal.Signals) -> None:
    command = [
        sys.executable, "-m", "dynaspec_cli", "generate", PROMPT, "--model", str(tiny_model_dir),
        "--dtype", "float32", "--max-new-tokens", "230", "--stream",
    ]  # fmt: skip
    slow = "import time, dynaspec_cli.engine.session as s\nold = s.pass_and_verify\n"
    slow += "def slowly(*a, **k):\n    time.sleep(0.1)\n    return old(*a, **k)\n"
    slow += "s.pass_and_verify = slowly\n"
    code = f"{slow}import sys\nsys.argv = {command[2:]!r}\n"
    code += "from dynaspec_cli.main import main\nmain()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.read(1)  # generation has begun
    time.sleep(0.3)
    process.send_signal(number)
    rest, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first + rest) > 1
    assert rest.endswith("\n")
    assert "interrupted" in messages
    assert "Traceback" not in messages


def test_doctor_json(
    tiny: Callable[..., Any], tiny_model_dir: Path, tiny_drafter_dir: Path
) -> None:
    result = tiny("doctor", "--drafter", tiny_drafter_dir, "--context", "100", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["schema"] == 1
    assert data["system"]["cuda"]["kernels_status"] == (
        "compiled, traced and emulated, not run on a GPU"
    )
    assert data["system"]["backend_reason"]
    head = data["head_share"]
    assert head["vocab_size"] == 400
    assert 0 < head["head_share_full"] <= 1
    assert head["draft_body_source"] == "measured"
    assert data["drafter"]["can_raise_coverage"] is True
    # 2 (K, V) x 2 layers x 2 heads x 8 x 4 bytes x (100 tokens + 8 nodes + 1)
    assert data["memory"]["parts_bytes"]["kv_cache"] == 2 * 2 * 2 * 8 * 4 * (100 + MOST_NODES + 1)
    shown = tiny("doctor", "--no-measure")
    assert "not run on a GPU" in " ".join(shown.stdout.split())
    assert "What runs where" in shown.stdout


def test_doctor_judges_a_drafter_that_it_cannot_load(
    tiny: Callable[..., Any], tiny_drafter_dir: Path, tmp_path: Path
) -> None:
    folder = altered(tiny_drafter_dir, tmp_path, head_hash="0" * 64)
    result = tiny("doctor", "--drafter", folder, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["drafter"]["can_raise_coverage"] is True
    assert "not timed" in data["note"]
    assert data["head_share"]["draft_body_source"].startswith("one target layer")


def test_doctor_refuses_what_it_cannot_read(tiny: Callable[..., Any], tmp_path: Path) -> None:
    one_line(tiny("doctor", model=tmp_path / "none"), 1, "no such file or folder")
    one_line(tiny("doctor", "--drafter", tmp_path), 1, "no config.json")
    one_line(tiny("doctor", "--context", "0"), 2, "--context")
