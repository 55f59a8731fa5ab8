"""``dynaspec serve`` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dynaspec_cli

PACKAGE = str(Path(dynaspec_cli.__file__).parents[1])
"""Where the package under test lies: a checkout beside it may hold another."""

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")


def start(*options, **env):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DYNASPEC_")}
    environment |= {"PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "dynaspec_cli", "serve", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, **env},
    )


def listening(process):
    for line in process.stderr:
        if found := re.search(r"on (http://\S+)/v1$", line.strip()):
            return found[1]
    raise AssertionError(process.stderr.read())


def test_it_serves_what_generate_says_until_told_to_end(program, chat_model_dir, tiny_drafter_dir):
    # The same threads: sizes of trees, and with them a seed's text, follow from the costs there.
    model = ("--model", chat_model_dir, "--dtype", "float32", "--threads", 1)
    model += ("--drafter", tiny_drafter_dir)
    process = start(*model, "--port", 0, "--max-new-tokens", 12, DYNASPEC_API_KEY="key")
    try:
        url = listening(process)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer key"}
        name = httpx.get(f"{url}/v1/models", headers=key).json()["data"][0]["id"]
        for seed in (1, 2):
            body = {"model": name, "prompt": "This is", "temperature": 0.9, "seed": seed}
            answer = httpx.post(f"{url}/v1/completions", json=body, headers=key, timeout=60).json()
            sampling = ("--temperature", "0.9", "--seed", seed, "--max-new-tokens", 12)
            own = program("generate", *model, *sampling, "This is", "--quiet")
            assert answer["choices"][0]["text"] + "\n" == own.stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        said, _ = process.communicate()  # closes the pipes
    assert said == ""


def test_what_cannot_be_served_is_told_before_a_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        begun = time.monotonic()
        for options, code, words in (
            (("--port", port), 1, "choose another --port"),
            (("--host", "no.such.host.invalid"), 2, "no such address"),
            (("--port", 70000), 2, "70000 is not in the range"),
            (("--api-key", " "), 2, "expected a key, got an empty one"),
            (("--json",), 2, "--json"),
        ):
            process = start("--model", "/nowhere", *options)
            out, error = process.communicate(timeout=60)
            assert (process.returncode, out) == (code, ""), error
            assert words in error.replace("\n", " ")
            assert len(error.strip().splitlines()) == 1
        assert time.monotonic() - begun < 120


def test_other_machines_are_warned_of():
    from dynaspec_cli.server.listen import is_loopback

    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))
    process = start("--host", "0.0.0.0", "--port", 0, "--model", "/nowhere")
    _, error = process.communicate(timeout=60)
    assert "without --api-key anyone there can use it" in error
