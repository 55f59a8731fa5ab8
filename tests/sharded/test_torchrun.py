"""``torchrun --nproc-per-node 2 dynaspec ...``: rank 0 speaks; what ends one rank ends all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
MODULE = ("-m", "dynaspec_cli")
SHORT = ("--max-new-tokens", 12)


@pytest.fixture
def options(chat_model_dir: Path, tiny_drafter_dir: Path) -> tuple[Any, ...]:
    model = ("--model", chat_model_dir, "--dtype", "float32", "--threads", 1)
    return (*model, "--drafter", tiny_drafter_dir, "--tree-size", 6)


def own_lines(stderr: str) -> list[str]:
    """Of dynaspec; torchrun reports a failure in words of its own."""
    return [line for line in stderr.splitlines() if line.startswith(("Error", "Warning", "Note"))]


def alone(program: Callable[..., Any], *arguments: Any, stdin: str = "") -> dict[str, Any]:
    found = program(*arguments, stdin=stdin)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_rank_0_speaks_and_reads(torchrun: Start, program: Any, options: Any) -> None:
    process = torchrun(2, *MODULE, "generate", *options, *SHORT, "--compare", "--json")
    out, error = process.communicate(PROMPT, timeout=240)  # the prompt is rank 0's alone to read
    assert process.returncode == 0, error
    two = json.loads(out)
    one = alone(program, "generate", *options, *SHORT, "--compare", "--json", stdin=PROMPT)
    assert two["token_ids"] == one["token_ids"]
    assert two["text"] == one["text"]
    assert two["identical"] is one["identical"] is True
    assert two["settings"]["target_kernels"] == "transformers (tensor parallel, 2 processes)"


def test_many_prompts_and_a_failing_one(
    torchrun: Start, program: Any, options: Any, tmp_path: Path
) -> None:
    prompts = tmp_path / "in.jsonl"
    lines = [{"id": 1, "prompt": PROMPT}, {"id": 2, "prompt": "word " * 300}, {"id": 3}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "out.jsonl"
    many = ("--prompt-file", prompts, "--max-new-tokens", 8)
    process = torchrun(2, *MODULE, "generate", *options, *many, "--out", out)
    _, error = process.communicate(timeout=240)
    assert process.returncode != 0
    assert own_lines(error) == [f'Error: 2 of 3 prompts failed; see "error" in {out}']
    found = {line["id"]: line for line in map(json.loads, out.read_text().splitlines())}
    one = alone(program, "generate", *options, "--max-new-tokens", 8, "--json", PROMPT)
    assert found[1]["token_ids"] == one["token_ids"]
    assert "shorten the prompt" in found[2]["error"]
    assert "error" in found[3]


def test_a_conversation(torchrun: Start, program: Any, options: Any) -> None:
    said = "Hello!\nAnd what is your name?\n/undo\nWho is it?\n"
    talk = ("--temperature", 0.7, "--seed", 3, "--max-new-tokens", 8, "--json", "--quiet")
    process = torchrun(2, *MODULE, "chat", *options, *talk)
    out, error = process.communicate(said, timeout=240)
    assert process.returncode == 0, error
    one = alone(program, "chat", *options, *talk, stdin=said)
    assert json.loads(out)["messages"] == one["messages"]


def test_a_server(torchrun: Start, program: Any, options: Any) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    process = torchrun(2, *MODULE, "serve", *options, "--port", 0, "--max-new-tokens", 8)
    assert process.stderr is not None
    url = next(
        found[1] for line in process.stderr if (found := re.search(r"on (http://\S+)/v1$", line))
    )
    for seed in (1, 2):
        body = {"prompt": PROMPT, "temperature": 0.9, "seed": seed}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120).json()
        sampling = ("--temperature", 0.9, "--seed", seed, "--max-new-tokens", 8, "--json")
        one = alone(program, "generate", *options, *sampling, PROMPT)
        assert answer["choices"][0]["text"] == one["text"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def gpt2(folder: Path, tokenizer: Path) -> Path:
    """A random model of a family that transformers cannot split."""
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(tokenizer, folder)
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_what_cannot_run_ends_all(torchrun: Start, options: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(32))
    other = gpt2(tmp_path / "gpt2", options[1])
    for count, arguments, words in (
        (3, ("generate", *options, PROMPT), "4 attention heads, which 3 processes cannot share"),
        (2, ("generate", "--model", file, PROMPT), "a GGUF file runs in one process"),
        (2, ("generate", "--model", other, PROMPT), "no tensor-parallel plan for models of type"),
        (2, ("generate", "--temperature", -1, PROMPT), "--temperature"),
    ):
        begun = time.monotonic()
        process = torchrun(count, *MODULE, *arguments)
        out, error = process.communicate(timeout=120)
        assert process.returncode != 0
        (line,) = own_lines(error)
        assert words in line
        assert out == ""
        assert time.monotonic() - begun < 100
    process = torchrun(2, *MODULE, "generate", "--help")  # what loads nothing ends as well
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.count("Usage:") == 1


def children(pid: int) -> list[int]:
    """In the order in which they were started: by rank."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return sorted(map(int, path.read_text(encoding="ascii").split()))


LONG = ("--max-new-tokens", 240, "--tree", "chain", "--tree-size", 1, "--drafter", "none")


def generating(process: subprocess.Popen[str]) -> str:
    """The first text that it prints."""
    assert process.stdout is not None
    return process.stdout.read(5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies(torchrun: Start, options: Any, rank: int) -> None:
    process = torchrun(2, *MODULE, "generate", *options, *LONG, PROMPT)
    generating(process)
    begun = time.monotonic()
    os.kill(children(process.pid)[rank], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - begun < 45
    (line,) = own_lines(error)
    assert "process" in line
    assert "has ended" in line


def test_ctrl_c_keeps_what_there_is(torchrun: Start, options: Any) -> None:
    process = torchrun(2, *MODULE, "generate", *options, *LONG, PROMPT)
    first = generating(process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert first + out
    assert "interrupted" in error
    assert not [line for line in own_lines(error) if line.startswith("Error")]
