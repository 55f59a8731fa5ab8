"""Encodings of prompts and output, chat arguments, and values of a config file that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynaspec_cli.bench.suites import parse_suite
from dynaspec_cli.checkpoints.token_map import load_token_map
from dynaspec_cli.training.corpus import read_corpus

from .conftest import PACKAGE, ROOT, FakeEngine

BOM = b"\xef\xbb\xbf"
WORDS = "Zoë — 世界 👩"

PROGRAM = """
import sys
from tests.cli import conftest
engine = conftest.FakeEngine(words=(WORDS,))
import dynaspec_cli.commands.generate as command
command.load_engine = lambda *a: engine
from dynaspec_cli.main import main
sys.argv = ["dynaspec", "generate", "x", *ARGS]
main()
"""


def generated(encoding: str, *args: str) -> subprocess.CompletedProcess[bytes]:
    code = PROGRAM.replace("WORDS", repr(WORDS)).replace("ARGS", repr(args))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": PACKAGE},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "latin-1"])
def test_no_character_is_lost_to_the_encoding(encoding: str) -> None:
    done = generated(encoding)
    assert done.returncode == 0, done.stderr
    expected = (WORDS + "\n").encode(encoding, "backslashreplace")
    assert done.stdout == expected


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_is_json_in_every_encoding(encoding: str) -> None:
    done = generated(encoding, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode(encoding))["text"] == WORDS
    assert (WORDS.encode() in done.stdout) == (encoding == "utf-8")


def test_a_byte_order_mark_is_no_text(
    run: Callable[..., Any], engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_bytes(BOM + b"hello\n")
    assert run("generate", "--prompt-file", str(tmp_path / "p.txt")).exit_code == 0
    assert engine.text == "hello"
    assert run("generate", "-", stdin=BOM + b"piped").exit_code == 0
    assert engine.text == "piped"


def test_a_byte_order_mark_in_every_other_text_file(
    run: Callable[..., Any], engine: FakeEngine, tmp_path: Path
) -> None:
    def marked(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(BOM + text.encode())
        return path

    assert [t.text for t in read_corpus([marked("c.txt", "One.\n\nTwo.")])] == ["One.", "Two."]
    assert [t.text for t in read_corpus([marked("c.jsonl", '{"text": "One."}\n')])] == ["One."]
    suite = parse_suite("s", BOM + b'{"id": "a", "task": "qa", "turns": ["x"]}\n', "s.jsonl")
    assert len(suite.prompts) == 1
    for name, text in (("m.txt", "3\n1\n"), ("m.json", "[3, 1]")):
        assert load_token_map(marked(name, text), 9).ids.tolist() == [3, 1]
    config = marked("c.toml", "[generate]\nmax-new-tokens = 7\n")
    assert run("generate", "x", "--config", str(config)).exit_code == 0
    assert engine.config.max_new_tokens == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("enable_thinking=false", False),
        ("enable_thinking=False", False),
        ("x=true", True),
        ("x=None", None),
        ("x=3", 3),
        ("x=2.5", 2.5),
        ('x={"a": [1]}', {"a": [1]}),
        ("x=high", "high"),
        ("x=a=b", "a=b"),
        ("x=", ""),
    ],
)
def test_chat_arguments(
    run: Callable[..., Any], engine: FakeEngine, text: str, value: object
) -> None:
    key = text.partition("=")[0]
    result = run("generate", "hi", "--chat", "--chat-arg", text, "--chat-arg", "other=1", "--json")
    assert result.exit_code == 0, result.stderr
    assert engine.tokenizer.arguments == {key: value, "other": 1}
    assert json.loads(result.stdout)["settings"]["chat_arguments"] == {key: value, "other": 1}
    assert run("generate", "hi", "--chat", DYNASPEC_CHAT_ARG=text).exit_code == 0
    assert engine.tokenizer.arguments == {key: value}


@pytest.mark.parametrize("text", ["thinking", "=1", "a b=1", ""])
def test_chat_arguments_that_are_none(run: Callable[..., Any], text: str) -> None:
    result = run("generate", "hi", "--chat", "--chat-arg", text)
    assert result.exit_code == 2
    assert "--chat-arg: expected KEY=VALUE" in result.stderr
    assert run("generate", "hi", "--chat-arg", "a=1").exit_code == 2  # without --chat


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[generate]\ntop-k = 2.5", "[generate] top-k"),
        ("[generate]\ntemperature = 'hot'", "[generate] temperature"),
        ("[generate]\ntemperature = -1", "[generate] temperature"),
        ("[generate]\ntree = 'oak'", "[generate] tree"),
        ("[generate]\ntree_size = 0", "[generate] tree_size"),
        ("[generate]\nsystem = 'x'", "[generate] system"),
        ("threads = 0", "threads"),
    ],
)
def test_a_wrong_value_in_a_file_names_the_file(
    run: Callable[..., Any], tmp_path: Path, text: str, place: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    result = run("generate", "x", "--config", str(path))
    assert result.exit_code == 2
    assert f"(from --config {path}: {place})" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_flag_or_variable_over_the_file_is_not_blamed_on_it(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[generate]\ntree-size = 4\ntop-k = 3\n")
    result = run("generate", "x", "--config", str(path), "--tree-size", "0")
    assert "--tree-size" in result.stderr
    assert "from --config" not in result.stderr
    result = run("generate", "x", "--config", str(path), DYNASPEC_TOP_K="x")
    assert "--top-k" in result.stderr
    assert "from --config" not in result.stderr
