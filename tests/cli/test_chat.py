"""``dynaspec chat``: through pipes and on a terminal, with a tiny model."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dynaspec_cli
from dynaspec_cli.chat.line import Line, parse
from dynaspec_cli.chat.transcript import PREAMBLE, STOP, written
from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig
from dynaspec_cli.engine.api import Engine

from .conftest import ROOT

PACKAGE = str(Path(dynaspec_cli.__file__).parents[1])
"""Where the package under test lies: a checkout beside it may hold another."""


@pytest.fixture
def chat(program, chat_model_dir, tiny_drafter_dir):
    def run(lines, *options, **more):
        return program(
            "chat",
            *("--model", chat_model_dir, "--dtype", "float32", "--drafter", tiny_drafter_dir),
            *("--shortlist", "nanospec", "--max-new-tokens", "8", *options),
            stdin="".join(line + "\n" for line in lines),
            **more,
        )

    return run


@pytest.fixture(scope="module")
def engine(chat_model_dir, tiny_drafter_dir):
    return Engine.load(
        str(chat_model_dir), dtype="float32", device="cpu", drafter=str(tiny_drafter_dir)
    )


def answer(engine, messages, temperature=0.0, seed=0):
    """What ``dynaspec generate --chat`` would say to a whole conversation."""
    config = GenerationConfig(
        max_new_tokens=8,
        sampling=SamplingConfig(temperature=temperature, seed=seed),
        shortlist=ShortlistConfig("nanospec"),
    )
    return engine.complete(engine.tokenizer.chat(messages), config)


def spoken(engine, questions, system=None, temperature=0.0, seed=0):
    """Messages and results of a conversation, each answer a fresh request."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    results = []
    for turn, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        results.append(answer(engine, messages, temperature, seed + turn))
        messages.append({"role": "assistant", "content": results[-1].text})
    return messages, results


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_fresh_requests(chat, engine, temperature):
    questions = ["Hello!", "And then?", "Это просто"]
    options = ("--temperature", str(temperature), "--seed", "3", "--system", "Be brief.")
    messages, results = spoken(engine, questions, "Be brief.", temperature, 3)
    plain = chat(questions, *options)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == "".join(f"{result.text}\n" for result in results)
    found = chat(questions, *options, "--json")
    data = json.loads(found.stdout)
    assert data["messages"] == messages
    assert [a["token_ids"] for a in data["answers"]] == [list(r.token_ids) for r in results]
    cached = [a["cached_prompt_tokens"] for a in data["answers"]]
    assert cached[0] == 0 < cached[1] < cached[2]
    assert [a["num_accepted_draft_tokens"] for a in data["answers"]] == [
        r.num_accepted_draft_tokens for r in results
    ]


def test_commands(chat, engine, tmp_path):
    saved = tmp_path / "talk.json"
    found = chat(
        ["One", "Two", "/undo", "/edit 1", "/system Short.", f"/save {saved}", "/stats"], "--json"
    )
    assert found.returncode == 0, found.stderr
    data = json.loads(found.stdout)
    first = {"role": "user", "content": "1"}
    assert [m["content"] for m in data["messages"] if m["role"] == "user"] == ["1"]
    assert data["answers"][2]["text"] == answer(engine, [first], seed=2).text
    assert data["messages"][0] == {"role": "system", "content": "Short."}
    stored = json.loads(saved.read_text(encoding="utf-8"))
    assert stored == {key: data[key] for key in ("schema", "model", "messages")}
    assert "3 answers: " in found.stderr
    found = chat(["One", "/system Short.", "/reset", "//etc", "/exit", "Never"], "--json")
    data = json.loads(found.stdout)
    assert [m["content"] for m in data["messages"]][:2] == ["Short.", "/etc"]
    assert len(data["messages"]) == 3


def test_errors_of_lines_let_the_conversation_go_on(chat, engine, tmp_path):
    lines = [
        "/nonsense",
        "/undo",
        "/save",
        f"/save {tmp_path / 'none' / 'talk.json'}",
        "/stats now",
        "word " * 400,
        "Hello!",
    ]
    found = chat(lines)
    assert found.returncode == 1
    assert found.stdout == answer(engine, [{"role": "user", "content": "Hello!"}]).text + "\n"
    errors = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
    for error, words in zip(
        errors,
        (
            "no such command",
            "no question yet",
            "expected a file name",
            "cannot be written",
            "nothing behind it",
            "shorten the prompt",
            "6 of the lines failed",
        ),
        strict=True,
    ):
        assert words in error


def test_what_a_conversation_cannot_do_is_said(chat, engine):
    """Without a terminal to edit on; beyond the context. What was said stays."""
    found = chat(["One", "/edit", "word " * 400, "Two", "/undo"], "--json")
    assert found.returncode == 1
    said = found.stderr
    assert "Error: /edit: expected TEXT, since there is no terminal to edit it on" in said
    assert "in all; /reset begins anew, /undo takes the last question back" in said
    assert "The last question and its answer are taken back." in said
    messages, _ = spoken(engine, ["One"])
    assert json.loads(found.stdout)["messages"] == messages


def test_a_base_model_continues_a_transcript(program, tiny_model_dir):
    options = ("--model", tiny_model_dir, "--dtype", "float32", "--max-new-tokens", "8")
    found = program("chat", *options, "--json", stdin="Hello\n/system Be brief.\nAnd you?\n")
    assert found.returncode == 0, found.stderr
    assert "is a base model without a chat template" in found.stderr
    data = json.loads(found.stdout)
    engine = Engine.load(str(tiny_model_dir), dtype="float32", device="cpu")
    messages = data["messages"]
    config = GenerationConfig(8, stop=(STOP,))
    first = engine.complete(written(messages[1:2]), config)
    second = engine.complete(written(messages[:-1]), config)
    assert [tuple(a["token_ids"]) for a in data["answers"]] == [first.token_ids, second.token_ids]
    assert messages[-1]["content"] == second.text.strip()
    assert all(a["settings"]["stop"] == [STOP] for a in data["answers"])
    quiet = program("chat", *options, "--quiet", stdin="Hello\n")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    refused = program("chat", *options, "--chat-arg", "a=1", stdin="Hello\n")
    assert refused.returncode == 1
    assert "--chat-arg" in refused.stderr


def test_transcripts_grow_at_their_end():
    turns = [
        {"role": "user", "content": "One? "},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    assert written(turns) == f"{PREAMBLE}\n\nUser: One?\nAssistant: Two.\nUser: Three?\nAssistant:"
    assert written(turns).startswith(written(turns[:1]))
    system = [{"role": "system", "content": "Be brief."}, *turns[:1]]
    assert written(system) == "Be brief.\n\nUser: One?\nAssistant:"


@pytest.mark.model
def test_without_a_model_the_embedded_one_talks(program):
    """It goes on with the transcript as ``generate`` does."""
    question = "What is the capital of France?"
    found = program("chat", "--max-new-tokens", "8", stdin=f"{question}\n")
    assert found.returncode == 0, found.stderr
    asked = written([{"role": "user", "content": question}])
    wanted = program("generate", asked, "--max-new-tokens", "8")
    assert found.stdout.strip() == wanted.stdout.split(STOP)[0].strip() != ""


def test_bad_input_is_refused(chat):
    found = chat(["Hello"], "--markdown", "--json")
    assert found.returncode == 2


def test_lines():
    assert parse(" hello /system ") == Line("", "hello /system")
    assert parse("/system  be kind ") == Line("/system", "be kind")
    assert parse("//x") == Line("", "/x")
    for text in ("/bye", "/save ", "/reset all"):
        with pytest.raises(ValueError, match=r"expected|no such"):
            parse(text)


def test_on_a_terminal(chat_model_dir, tiny_drafter_dir, engine, tmp_path):
    """Ctrl-C on an empty line does nothing, the arrow key brings a line back, Ctrl-D ends."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "dynaspec_cli", "chat", "--model", str(chat_model_dir)),
            *("--dtype", "float32", "--drafter", str(tiny_drafter_dir)),
            *("--shortlist", "nanospec", "--max-new-tokens", "8"),
        ],
        stdin=child, stdout=subprocess.PIPE, stderr=child, cwd=ROOT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": PACKAGE, "TERM": "xterm", "OMP_NUM_THREADS": "1",
             "XDG_STATE_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    os.close(child)
    prompts = 0

    def until(wanted):
        """Read until an editor has opened so many times: it asks for bracketed paste then."""
        nonlocal prompts
        deadline = time.monotonic() + 60
        while prompts < wanted:
            assert time.monotonic() < deadline
            if not select.select([parent], [], [], 0.2)[0]:
                continue
            piece = os.read(parent, 1 << 16)
            prompts += piece.count(b"\x1b[?2004h")
            if b"\x1b[6n" in piece:  # where is the cursor?
                os.write(parent, b"\x1b[1;1R")

    try:
        for prompt, keys in enumerate((b"\x03", b"Hello!\r", b"\x1b[A\r", b"\x04"), 1):
            until(prompt)
            os.write(parent, keys)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(parent)
    _, results = spoken(engine, ["Hello!", "Hello!"])
    assert process.returncode == 0
    assert out.decode() == "".join(f"{result.text}\n" for result in results)
    history = tmp_path / "dynaspec" / "chat-history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "+Hello!" in history.read_text(encoding="utf-8")


def test_history_can_be_kept_to_oneself(monkeypatch, tmp_path):
    from dynaspec_cli.ui import typed

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert typed.history_file() is None
    monkeypatch.setattr(sys, "stdin", None)
    assert isinstance(typed.open_lines(True), typed.PipedLines)
    assert list(typed.open_lines(True)) == []
    assert not Path(tmp_path / "dynaspec").exists()
