"""Many prompts: each line is what its prompt gives alone, however often the run is cut short."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

import dynaspec_cli
from dynaspec_cli.batch import workers
from dynaspec_cli.batch.answer import BatchRequest, answer
from dynaspec_cli.batch.prompts import BatchPrompt, read_prompts
from dynaspec_cli.batch.results import ResultsFile
from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig
from dynaspec_cli.engine.api import Engine, never
from dynaspec_cli.errors import DynaSpecError, UsageError

PACKAGE = str(Path(dynaspec_cli.__file__).parents[1])
"""Where the package under test lies: a checkout beside it may hold another."""

CONFIG = GenerationConfig(
    max_new_tokens=8,
    sampling=SamplingConfig(temperature=0.8, seed=5),
    shortlist=ShortlistConfig("nanospec", 64),
)
TIMES = ("tokens_per_second", "time_to_first_token_s", "load_s", "decode_s", "phase_ms")
LINES = [
    {"id": "a", "prompt": "The capital of France is"},
    {"id": 7, "prompt": "def add(a, b):"},
    {"id": "chat", "messages": [{"role": "user", "content": "Hello!"}]},
    {"id": "empty", "prompt": " "},
    {"id": "long", "prompt": "word " * 300},
    {"id": "last", "prompt": "Это просто"},
]


@pytest.fixture(scope="module")
def request_(chat_model_dir, tiny_drafter_dir):
    return BatchRequest(
        CONFIG,
        model=str(chat_model_dir),
        dtype="float32",
        device="cpu",
        threads=1,
        drafter=str(tiny_drafter_dir),
    )


@pytest.fixture(scope="module")
def engine(request_) -> Engine:
    return request_.load()


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def lasting(line):
    """A line without its times; another process has other thread counts and versions' order."""
    kept = {key: value for key, value in line.items() if key not in TIMES}
    if "settings" in kept:
        kept["settings"] = {k: v for k, v in kept["settings"].items() if k != "threads"}
    return kept


def by_id(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {json.dumps(line["id"]): lasting(line) for line in lines}
    assert len(found) == len(lines)
    return found


OPTIONS = (
    *("--max-new-tokens", "8", "--temperature", "0.8", "--seed", "5"),
    *("--shortlist", "nanospec", "--shortlist-size", "64"),
)


@pytest.fixture
def generate(program, chat_model_dir, tiny_drafter_dir):
    def run(*options, **env):
        model = ("--model", chat_model_dir, "--dtype", "float32", "--drafter", tiny_drafter_dir)
        return program("generate", *model, *OPTIONS, *options, **env)

    return run


def test_lines_are_what_generate_says_of_each_prompt_alone(generate, tmp_path, engine, request_):
    prompts, out = write(tmp_path / "in.jsonl", LINES), tmp_path / "new" / "out.jsonl"
    found = generate("--prompt-file", prompts, "--out", out)
    assert found.returncode == 1
    assert "2 of 6 prompts failed" in found.stderr
    assert found.stdout == ""
    lines = by_id(out)
    assert lines.keys() == {json.dumps(line["id"]) for line in LINES}
    assert "the prompt is empty" in lines['"empty"']["error"]
    assert "shorten the prompt" in lines['"long"']["error"]
    alone = json.loads(generate(LINES[0]["prompt"], "--json").stdout)
    text = {
        **alone,
        "settings": {k: alone["settings"][k] for k in lines['"a"']["settings"] if k != "threads"},
        "id": "a",
    }
    assert lasting(text) == lines['"a"']
    ids = engine.tokenizer.chat(LINES[2]["messages"])
    assert lines['"chat"']["token_ids"] == list(engine.complete(ids, CONFIG).token_ids)
    for prompt in read_prompts(prompts):
        assert lasting(answer(engine, prompt, request_)) == lines[json.dumps(prompt.id)]
    # Once more: nothing is left to do.
    before = out.read_bytes()
    again = generate("--prompt-file", prompts, "--out", out, "--json", "--quiet")
    assert out.read_bytes() == before
    assert json.loads(again.stdout) == {
        "schema": 1, "out": str(out), "prompts": 6, "answered": 4, "failed": 2,
    }  # fmt: skip
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl"]


def test_workers_give_the_same_lines(generate, tmp_path, engine, request_):
    prompts, out = write(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"
    found = generate("--prompt-file", prompts, "--out", out, "--workers", 2)
    assert found.returncode == 1
    assert "2 of 6 prompts failed" in found.stderr
    serial = {json.dumps(p.id): lasting(answer(engine, p, request_)) for p in read_prompts(prompts)}
    assert by_id(out) == serial


def test_a_killed_workers_prompt_is_done_again(engine, request_):
    prompts = [BatchPrompt(i, i, text="The capital " * (1 + i % 3)) for i in range(1, 13)]
    lines = []
    for line in workers.run(2, prompts, request_, never):
        lines.append(line)
        if len(lines) in (1, 6):
            victim = multiprocessing.active_children()[0]
            os.kill(victim.pid, signal.SIGKILL)
    assert sorted(line["id"] for line in lines) == list(range(1, 13))
    for line in lines:
        own = answer(engine, prompts[line["id"] - 1], request_)
        assert lasting(line) == lasting(own)
    assert multiprocessing.active_children() == []


def test_a_prompt_that_kills_its_workers_becomes_an_error(request_, tmp_path):
    prompts = [BatchPrompt(1, "kill", text="x"), BatchPrompt(2, "good", text="y")]
    lines = list(workers.run(1, prompts, Deadly(tmp_path / "load"), never))
    assert [line["id"] for line in lines] == ["kill", "good"]
    assert lines[0]["error"] == "3 workers died with it (signal 9)"
    assert lines[1]["error"].startswith("Unexpected")


def test_workers_that_cannot_load_end_the_run(request_, tmp_path):
    prompts = [BatchPrompt(1, "a", text="x")]
    with pytest.raises(DynaSpecError, match="3 workers died while they loaded the model"):
        list(workers.run(1, prompts, Deadly(None), never))
    with pytest.raises(DynaSpecError, match="/nowhere"):
        list(workers.run(1, prompts, BatchRequest(CONFIG, model="/nowhere"), never))


class Deadly:
    """A request whose engine dies with the prompt "x"; without a path, while it loads."""

    drafter = "none"
    system = None
    chat_arguments: ClassVar[dict] = {}
    chat = False
    config = CONFIG

    def __init__(self, path):
        self.path = path

    def load(self):
        if self.path is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self

    def encode(self, text):
        if text == "x":
            os.kill(os.getpid(), signal.SIGKILL)
        return [1]

    def generate(self, *_, **__):
        raise RuntimeError("no engine")


def test_a_killed_run_goes_on_where_it_stopped(
    tmp_path, chat_model_dir, tiny_drafter_dir, engine, request_
):
    lines = [{"id": i, "prompt": f"The capital {i}"} for i in range(40)]
    prompts, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    command = [
        *(sys.executable, "-P", "-m", "dynaspec_cli", "generate", "--model", str(chat_model_dir)),
        *("--dtype", "float32", "--drafter", str(tiny_drafter_dir), *OPTIONS),
        *("--prompt-file", str(prompts), "--out", str(out)),
    ]
    env = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}
    for sent, least in ((signal.SIGKILL, 5), (signal.SIGINT, 10)):
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not out.exists() or out.read_bytes().count(b"\n") < least:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(sent)
        process.communicate(timeout=60)
        assert process.returncode == (130 if sent == signal.SIGINT else -9)
        assert out.read_bytes().count(b"\n") < 40
    with out.open("ab") as file:
        file.write(b'{"id": 39, "te')  # a line that a kill tore
    done = subprocess.run(command, env=env, capture_output=True, check=True, text=True)
    assert "going on" in done.stderr
    found = by_id(out)
    assert len(found) == 40
    for i in (0, 7, 39):
        own = answer(engine, BatchPrompt(1, i, text=f"The capital {i}"), request_)
        assert lasting(own) == found[str(i)]


def test_bad_lines_are_results_with_an_error(tmp_path):
    rows = [
        b'{"id": 1, "prompt": "x"}',
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"prompt": "x"}',
        b'{"id": true, "prompt": "x"}',
        b'{"id": 2}',
        b'{"id": 3, "prompt": "x", "messages": []}',
        b'{"id": 4, "prompt": 5}',
        b'{"id": 5, "prompt": "\\ud800"}',
        b'{"id": 6, "messages": [{"role": "user"}]}',
        b'{"id": 7, "prompt": "x", "max_tokens": 5}',
        b'{"id": 1, "prompt": "again"}',
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(rows))
    first, *bad = read_prompts(path)
    assert (first.line, first.id, first.text, first.error) == (1, 1, "x", None)
    assert [prompt.line for prompt in bad] == list(range(3, 15))
    for prompt, words in zip(
        bad,
        (
            "no valid JSON",
            "no valid UTF-8",
            "got list",
            'expected an "id"',
            'expected an "id"',
            'expected "prompt" or "messages"',
            'expected "prompt" or "messages"',
            '"prompt": expected a text',
            "half a character",
            '"messages": expected {',
            "unknown key 'max_tokens'",
            "id 1 stands in line 1 already",
        ),
        strict=True,
    ):
        assert words in prompt.error
    assert len({prompt.key for prompt in [first, *bad]}) == 13
    (tmp_path / "none.jsonl").write_text("\n\n")
    for name, words in (("none.jsonl", "got an empty file"), ("missing.jsonl", "cannot be read")):
        with pytest.raises(UsageError, match=words):
            read_prompts(tmp_path / name)


def test_the_results_file_is_guarded(tmp_path):
    path = tmp_path / "out.jsonl"
    settings = {"temperature": 0.8, "threads": 1, "versions": {"torch": "1"}}
    with ResultsFile(path) as results:
        results.append({"id": 1, "settings": settings})
        with pytest.raises(DynaSpecError, match="another run"), ResultsFile(path):
            pass
        with pytest.raises(DynaSpecError, match="two results for id 1"):
            results.append({"id": 1, "settings": settings})
    with ResultsFile(path) as results:
        assert results.done == {"id 1"}
        results.append({"id": 2, "settings": {**settings, "threads": 2, "versions": {}}})
        with pytest.raises(DynaSpecError, match=r"made with temperature 0.8, not 0\.0"):
            results.append({"id": 3, "settings": {**settings, "temperature": 0.0}})
        results.append({"id": None, "line": 4, "error": "bad"})
        assert results.failed == 1
    assert path.read_text().count("\n") == 3
    path.write_text("text\n")
    with pytest.raises(DynaSpecError, match="line 1 is no result"), ResultsFile(path):
        pass
    with pytest.raises(DynaSpecError, match="cannot be written"), ResultsFile(path / "x"):
        pass


def test_options_that_need_each_other(generate, tmp_path):
    prompts = write(tmp_path / "in.jsonl", LINES[:1])
    out = ("--out", tmp_path / "out.jsonl")
    for options, words in (
        (("--prompt-file", prompts), "many prompts need --out"),
        (("x", *out), "--out: needs many prompts"),
        (("x", "--workers", 2), "--workers: needs many prompts"),
        (("x", "--ray", "auto"), "--ray: needs many prompts"),
        (("--prompt-file", prompts, *out, "--workers", 0), "--workers: expected at least 1"),
        (("--prompt-file", prompts, *out, "--compare"), "--compare: goes with one prompt"),
        (("--prompt-file", prompts, *out, "x"), "PROMPT: goes with one prompt"),
    ):
        found = generate(*options)
        assert (found.returncode, found.stdout) == (2, "")
        assert words in found.stderr
    assert not (tmp_path / "out.jsonl").exists()
