"""Bad input, limits and clients that go away: a clear error each, and the server lives on."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time

import pytest

httpx = pytest.importorskip("httpx")


def post(running, data, path="completions", **more):
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    return httpx.post(f"{running.url}/v1/{path}", content=content, timeout=60, **more)


OK = {"prompt": "This is", "max_tokens": 4}
SEEDED = {**OK, "seed": 1}
"""Sure to need a verification."""
CHAT = {"messages": [{"role": "user", "content": "This is"}]}

BODIES = [
    (b"", "no JSON"),
    (b"{", "no JSON"),
    (b"[1]", "JSON object"),
    (b'{"prompt": "x", "temperature": NaN}', "NaN is no JSON number"),
    (b'{"prompt": "\xff"}', "no UTF-8: byte 12"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}", "no JSON"),
    ({"prompt": "\ud800"}, "half a character"),
    ({"prompt": "x", "stop": ["\ud800"]}, "half a character"),
    ({}, "prompt: is missing"),
    ({"prompt": None}, "prompt: is missing"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": "  \n"}, "the prompt is empty"),
    ({"prompt": []}, "expected a text or a list of token ids"),
    ({"prompt": ["a", "b"]}, "one prompt a request, got 2"),
    ({"prompt": [1, True]}, "expected a text or a list of token ids"),
    ({"prompt": [-1]}, "token ids from 0 to 399"),
    ({"prompt": [400]}, "token ids from 0 to 399"),
    ({"prompt": 3}, "expected a text or a list of token ids"),
    ({"prompt": "a " * 500_000}, "shorten the prompt"),
    ({**OK, "temperature": -0.5}, "temperature: expected a finite number"),
    ({**OK, "temperature": "hot"}, "temperature: expected a number"),
    ({**OK, "temperature": True}, "temperature: expected a number"),
    ({**OK, "temperature": 10**400}, "temperature: is too large"),
    ({**OK, "top_p": 0}, "top_p: expected a number in"),
    ({**OK, "top_k": -1}, "top_k: expected 0"),
    ({**OK, "top_k": 1.5}, "top_k: expected an integer"),
    ({**OK, "min_p": 2}, "min_p: expected"),
    ({**OK, "seed": "a"}, "seed: expected an integer"),
    ({**OK, "seed": 2**63}, "seed: expected an integer"),
    ({**OK, "n": 2}, "n: expected 1"),
    ({**OK, "n": 0}, "n: expected 1"),
    ({**OK, "n": True}, "n: expected an integer"),
    ({**OK, "max_tokens": 0}, "max_tokens: expected at least 1"),
    ({**OK, "max_tokens": "4"}, "max_tokens: expected an integer"),
    ({**OK, "max_completion_tokens": 4}, "got both"),
    ({**OK, "stop": ""}, "stop: expected"),
    ({**OK, "stop": ["a"] * 17}, "stop: expected"),
    ({**OK, "stop": {"a": 1}}, "stop: expected"),
    ({**OK, "stream": "yes"}, "stream: expected true or false"),
    ({**OK, "stream_options": {"include_usage": True}}, "goes with stream true only"),
    ({**OK, "stream": True, "stream_options": {"x": 1}}, "stream_options: expected"),
    ({**OK, "logprobs": 3}, "logprobs: is not supported"),
    ({**OK, "echo": True}, "echo: is not supported"),
    ({**OK, "best_of": 2}, "best_of: is not supported"),
    ({**OK, "presence_penalty": 0.5}, "presence_penalty: is not supported"),
    ({**OK, "temprature": 1}, "temprature: no such field"),
    ({**OK, "messages": []}, "messages: no such field"),
]
CHATS = [
    ({"messages": []}, "at least one message"),
    ({"messages": "hi"}, "at least one message"),
    ({"messages": ["hi"]}, "messages[0]: expected"),
    ({"messages": [{"role": "bard", "content": "x"}]}, "messages[0].role: expected one of"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content: expected a text"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: expected a text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "only parts of type text",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls: is not supported",
    ),
    ({**CHAT, "chat_template_kwargs": 3}, "chat_template_kwargs: expected an object"),
    ({**CHAT, "chat_template_kwargs": {"messages": 3}}, "messages: set by --chat itself"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools: is not supported"),
    ({**CHAT, "response_format": {"type": "json_object"}}, "response_format: is not supported"),
    ({"messages": [{"role": "user", "content": "a " * 500}]}, "shorten the prompt"),
]


def test_bad_requests_are_refused_one_by_one(start, hold):
    """Before anything runs: no verification is permitted here."""
    running = start()
    for path, cases in (("completions", BODIES), ("chat/completions", CHATS)):
        for body, message in cases:
            answer = post(running, body, path)
            error = answer.json()["error"]
            assert (answer.status_code, message in error["message"]) == (400, True), (body, error)
            assert error["type"] == "invalid_request_error"
            assert error.keys() == {"message", "type", "param", "code"}
    assert running.service.jobs.counts == (0, 0)
    hold.release(100)
    assert post(running, OK).status_code == 200


def test_neutral_and_null_fields_are_accepted(start):
    running = start()
    body = {
        **OK,
        "n": 1,
        "logprobs": None,
        "best_of": 1,
        "echo": False,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "user": "someone",
        "stop": None,
        "stream": None,
        "seed": None,
        "suffix": None,
        "model": "tiny",
    }
    assert post(running, body).status_code == 200
    more = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": True}
    assert post(running, {**CHAT, **more}, "chat/completions").status_code == 200


def test_large_bodies_are_refused_and_read(start):
    running = start(max_body=1000)
    answer = post(running, {"prompt": "x" * 100_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert post(running, OK).status_code == 200


def test_paths_and_methods(start):
    running = start()
    for method, path, status in (
        ("GET", "/nope", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
    ):
        answer = httpx.request(method, running.url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    assert httpx.get(f"{running.url}/health").json() == {
        "status": "ok",
        "running": 0,
        "waiting": 0,
    }


@pytest.mark.parametrize(
    "header",
    [None, "Bearer", "Bearer kex", "Bearer key2", "Basic key", "key", b"Bearer \xff\xfe"],
)
def test_wrong_keys(start, header):
    running = start(api_key="key")
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/metrics", "/nope"):
        answer = httpx.get(running.url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert post(running, OK, headers=headers).status_code == 401
    assert httpx.get(f"{running.url}/health", headers=headers).status_code == 200


def test_the_right_key(start):
    running = start(api_key="kéy")
    headers = {"Authorization": "Bearer kéy".encode()}
    assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == 200
    assert running.metric("dynaspec_requests_running", headers) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_request(start, hold, stream):
    running = start()
    gone = leave_after_asking(running, {**SEEDED, "max_tokens": 100, "stream": stream})
    hold.release(3)
    wait_for(lambda: hold.taken == 3)
    gone()
    # Within a step: the one under way may end, no other begins.
    time.sleep(0.3)
    hold.release(1)
    running.wait_idle()
    assert hold.taken <= 4
    assert running.metric('dynaspec_requests_total{outcome="cancelled"}') == 1
    hold.release(1000)
    assert post(running, OK).status_code == 200


def test_a_waiting_client_that_goes_away_leaves_the_queue(start, hold):
    running = start(max_queue=1)
    first = leave_after_asking(running, SEEDED)
    wait_for(lambda: running.service.jobs.counts == (1, 0))
    second = leave_after_asking(running, OK)
    wait_for(lambda: running.service.jobs.counts == (1, 1))
    assert post(running, OK).status_code == 429
    second()
    wait_for(lambda: running.service.jobs.counts == (1, 0))
    hold.release(1000)
    assert post(running, OK).status_code == 200
    first()


def test_queue_of_none(start, hold):
    running = start(max_queue=0)
    first = leave_after_asking(running, SEEDED)
    wait_for(lambda: running.service.jobs.counts == (1, 0))
    answer = post(running, OK)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"
    hold.release(1000)
    running.wait_idle()
    for _ in range(5):
        assert post(running, OK).status_code == 200
    first()


def test_the_end_of_the_server_ends_its_requests(start, hold):
    running = start()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(running, {**SEEDED, "max_tokens": 90})))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: running.service.jobs.counts == (1, 2))
    running.server.should_exit = True
    time.sleep(0.3)
    hold.release(2)
    for thread in threads:
        thread.join(10)
    assert [answer.status_code for answer in answers] == [503] * 3
    assert hold.taken <= 2


def test_logs_hold_no_prompt(start, caplog):
    running = start()
    secret = "Zanzibar"
    post(running, {"prompt": secret, "max_tokens": 2})
    post(running, {"prompt": [secret, secret]})
    post(running, b'{"prompt": "' + secret.encode())
    post(running, {"messages": [{"role": secret, "content": secret}]}, "chat/completions")
    httpx.get(f"{running.url}/v1/models?{secret}")
    wait_for(lambda: len(running.lines) == 5)  # a line follows its answer
    assert secret not in "".join(running.lines) + caplog.text
    assert running.lines[0].startswith("POST /v1/completions 200 ")


def test_unforeseen_errors_keep_their_text(start, monkeypatch, chat_engine):
    running = start()

    def broken(*_):
        raise RuntimeError("Zanzibar")

    with monkeypatch.context() as patch:
        patch.setattr(chat_engine.target, "prefill", broken)
        answer = post(running, OK)
    assert answer.status_code == 500
    with monkeypatch.context() as patch:
        patch.setattr(chat_engine.tokenizer.__class__, "encode", broken)
        second = post(running, OK)
    assert second.status_code == 500
    assert second.json()["error"]["message"] == "unexpected RuntimeError"
    assert "Zanzibar" not in answer.text + second.text + "".join(running.lines)
    assert post(running, OK).status_code == 200


def test_metrics_count(start):
    running = start()
    for _ in range(2):
        post(running, SEEDED)
    assert running.metric('dynaspec_requests_total{outcome="completed"}') == 2
    assert running.metric("dynaspec_generated_tokens_total") <= 8
    assert running.metric("dynaspec_cached_prompt_tokens_total") > 0
    assert running.metric("dynaspec_tokens_per_second") > 0
    assert running.metric("dynaspec_mean_acceptance_length") >= 1
    assert 0 < running.metric("dynaspec_mean_shortlist_size") <= 64
    assert running.metric("dynaspec_resident_memory_bytes") > 1e6


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(start):
    running = start()
    base = ["curl", "-sS", "--max-time", "30"]
    body = json.dumps({**SEEDED, "stream": True})
    out = subprocess.run(
        [*base, "-N", f"{running.url}/v1/completions", "-d", body],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    events = [line[6:] for line in out.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    whole = post(running, SEEDED).json()["choices"][0]["text"]
    assert text == whole


def leave_after_asking(running, body):
    """Ask over a bare socket; calling the result closes it."""
    host, port = running.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection.close


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_megabytes_are_refused_before_they_are_tokenized(path, start, chat_engine, monkeypatch):
    read = []
    running = start(chat_engine)
    monkeypatch.setattr(type(chat_engine.tokenizer), "encode", lambda *a, **k: read.append(1))
    text = "word " * 210_000
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages} if path.startswith("chat") else {"prompt": text}
    answer = post(running, body, path)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "tokens or more" in error["message"]
    assert error["param"] == next(iter(body))
    assert not read
