"""Many prompts on a Ray that the test starts on this machine."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import dynaspec_cli
from dynaspec_cli.batch.answer import BatchRequest, answer
from dynaspec_cli.batch.prompts import BatchPrompt
from dynaspec_cli.engine.api import never
from dynaspec_cli.errors import DynaSpecError, UsageError

from .test_drafters import KINDS, PROMPTS, request_of
from .test_many_prompts import CONFIG, LINES, OPTIONS, by_id, lasting, write

pytest.importorskip("ray")
from dynaspec_cli.batch import on_ray

PACKAGE = str(Path(dynaspec_cli.__file__).parents[1])
"""Where the package under test lies: a checkout beside it may hold another."""


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


def actors():
    """Process ids of the actors that answer."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::") and b"Map" in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_two_actors_one_of_which_is_killed(request_, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PACKAGE)
    prompts = [BatchPrompt(i, i, text="The capital " * (1 + i % 3)) for i in range(1, 41)]
    lines, killed = [], []
    for line in on_ray.run(on_ray.LOCAL, 2, prompts, request_, never):
        lines.append(line)
        if len(lines) == 3:
            killed = actors()
            assert len(killed) == 2
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert sorted(line["id"] for line in lines) == list(range(1, 41))
    engine = request_.load()
    for line in lines:
        assert lasting(line) == lasting(answer(engine, prompts[line["id"] - 1], request_))


@pytest.mark.slow
def test_the_command(program, request_, tmp_path):
    prompts, out = write(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"
    found = program(
        "generate",
        *("--model", request_.model, "--dtype", "float32", "--drafter", request_.drafter),
        *(*OPTIONS, "--prompt-file", prompts, "--out", out, "--ray", "local", "--workers", 2),
    )
    assert found.returncode == 1, found.stderr
    assert "2 of 6 prompts failed" in found.stderr
    assert found.stdout == ""
    engine = request_.load()
    lines = by_id(out)
    ids = engine.encode(LINES[0]["prompt"])
    assert lines['"a"']["token_ids"] == list(engine.complete(ids, CONFIG).token_ids)
    assert lines.keys() == {json.dumps(line["id"]) for line in LINES}


def test_addresses_that_lead_nowhere(request_):
    prompts = [BatchPrompt(1, "a", text="x")]
    for address, kind, words in (
        ("127.0.0.1:9", DynaSpecError, "cannot be reached"),
        ("ray://127.0.0.1:9", DynaSpecError, "cannot be reached"),
        ("nonsense", UsageError, "expected HOST:PORT, auto or local"),
        ("no.such.host.invalid:1", DynaSpecError, "cannot be reached"),
    ):
        with pytest.raises(kind, match=words):
            list(on_ray.run(address, 1, prompts, request_, never))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "temperature"), [*((kind, 0.8) for kind in KINDS), ("trained", 0.0)]
)
def test_an_actors_lines_are_the_engines(
    kind, temperature, chat_model_dir, tiny_drafter_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", PACKAGE)
    request = request_of(kind, chat_model_dir, tiny_drafter_dir, tmp_path, temperature)
    engine = request.load()
    own = {prompt.id: lasting(answer(engine, prompt, request)) for prompt in PROMPTS}
    lines = on_ray.run(on_ray.LOCAL, 1, PROMPTS, request, never)
    assert {line["id"]: lasting(line) for line in lines} == own
