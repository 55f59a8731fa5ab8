"""The server as the ``openai`` package sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.conftest import DEFAULTS

openai = pytest.importorskip("openai")

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "The capital of France?"},
]
SETTINGS = {"temperature": 0.9, "top_p": 0.95, "seed": 7, "max_tokens": 24}


def connect(running, key="none"):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def client(start):
    return connect(start())


def direct(engine, prompt, **changes):
    """What the command line would generate."""
    config = replace(DEFAULTS, max_new_tokens=24, stop=changes.pop("stop", ()))
    sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 7, **changes}
    ids = engine.encode(prompt) if isinstance(prompt, str) else engine.tokenizer.chat(prompt)
    return engine.complete(ids, replace(config, sampling=replace(config.sampling, **sampling)))


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "dynaspec"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.models.retrieve("other")


def test_a_chat_completion_is_the_engines(client, chat_engine):
    found = client.chat.completions.create(model="tiny", messages=MESSAGES, **SETTINGS)
    own = direct(chat_engine, MESSAGES)
    choice = found.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", own.text)
    assert choice.finish_reason == {"eos": "stop"}.get(own.finish_reason, own.finish_reason)
    assert found.usage.prompt_tokens == own.prompt_tokens
    assert found.usage.completion_tokens == own.new_tokens
    assert found.usage.total_tokens == own.prompt_tokens + own.new_tokens
    assert found.usage.prompt_tokens_details.cached_tokens == 0
    assert found.object == "chat.completion"


def test_a_stream_adds_up_to_the_whole(client, chat_engine):
    own = direct(chat_engine, MESSAGES)
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **SETTINGS,
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == own.text
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert last.choices == []
    assert last.usage.completion_tokens == own.new_tokens
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_completions_whole_streamed_and_by_token_ids(client, chat_engine):
    own = direct(chat_engine, "def add(a, b):")
    whole = client.completions.create(model="tiny", prompt="def add(a, b):", **SETTINGS)
    assert whole.choices[0].text == own.text
    assert whole.object == "text_completion"
    stream = client.completions.create(
        model="tiny", prompt=["def add(a, b):"], stream=True, **SETTINGS
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == own.text
    ids = chat_engine.encode("def add(a, b):")
    assert client.completions.create(model="tiny", prompt=ids, **SETTINGS).choices[0].text == (
        own.text
    )


def test_parts_of_a_message_and_the_developers_role(client, chat_engine):
    parts = [{"type": "text", "text": "The capital"}, {"type": "text", "text": " of France?"}]
    found = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
        ],
        **SETTINGS,
    )
    assert found.choices[0].message.content == direct(chat_engine, MESSAGES).text


def test_stop_and_the_extra_fields(client, chat_engine):
    own = direct(chat_engine, MESSAGES, temperature=0.0, top_p=1.0)
    stop = own.text[4:7]
    found = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=24, stop=stop
    )
    assert found.choices[0].message.content == own.text[: own.text.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    found = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=5.0,
        seed=1,
        max_completion_tokens=24,
        extra_body={"top_k": 1},
    )
    assert found.choices[0].message.content == own.text
    found = client.chat.completions.create(
        model="tiny", messages=MESSAGES, seed=1, max_tokens=24, extra_body={"min_p": 1.0}
    )
    assert found.choices[0].message.content == own.text


def test_a_conversation_is_read_once(client, chat_engine):
    messages, cached = list(MESSAGES), []
    for turn in range(3):
        found = client.chat.completions.create(
            model="tiny", messages=messages, temperature=0.8, seed=turn, max_tokens=8
        )
        answer = found.choices[0].message.content
        ids = chat_engine.tokenizer.chat(messages)
        config = replace(
            DEFAULTS,
            max_new_tokens=8,
            sampling=replace(DEFAULTS.sampling, temperature=0.8, seed=turn),
        )
        assert answer == chat_engine.complete(ids, config).text
        cached.append(found.usage.prompt_tokens_details.cached_tokens)
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "More?"},
        ]
    assert cached[0] == 0 < cached[1] < cached[2]


def test_without_a_seed_answers_differ(client):
    texts = {
        client.completions.create(model="tiny", prompt="This", temperature=1.5).choices[0].text
        for _ in range(4)
    }
    assert len(texts) > 1


def test_errors_have_their_classes(start, hold):
    running = start(api_key="key", max_queue=1)
    with pytest.raises(openai.AuthenticationError, match="wrong or missing API key"):
        connect(running, "kez").models.list()
    client = connect(running, "key")
    with pytest.raises(openai.NotFoundError, match="'gpt' does not exist; this server has 'tiny'"):
        client.completions.create(model="gpt", prompt="x")
    with pytest.raises(openai.BadRequestError, match="ask once for every answer") as raised:
        client.completions.create(model="tiny", prompt="x", n=2)
    assert raised.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="x", temperature=-1)
    with pytest.raises(openai.BadRequestError, match="shorten the prompt") as raised:
        client.completions.create(model="tiny", prompt=[5] * 256)
    assert raised.value.code == "context_length_exceeded"
    streams = [
        client.completions.create(model="tiny", prompt="x", stream=True, seed=1) for _ in range(2)
    ]
    with pytest.raises(openai.RateLimitError, match="requests wait already"):
        client.completions.create(model="tiny", prompt="x")
    hold.release(1000)
    texts = ["".join(chunk.choices[0].text for chunk in stream) for stream in streams]
    assert texts[0] == texts[1] != ""
    assert hold.taken > 0
    client.completions.create(model="tiny", prompt="x")


def test_an_error_within_a_stream_is_told(start, monkeypatch, chat_engine):
    from dynaspec_cli.errors import DynaSpecError

    running = start()
    client = connect(running)
    verify, calls = chat_engine.target.verify, []

    def broken(*args):
        calls.append(None)
        if len(calls) == 3:
            raise DynaSpecError("the weights are damaged")
        return verify(*args)

    with monkeypatch.context() as patch:
        patch.setattr(chat_engine.target, "verify", broken)
        with pytest.raises(openai.APIError, match="the weights are damaged"):
            list(client.completions.create(model="tiny", prompt="x y z", stream=True))
        calls.clear()
        with pytest.raises(openai.InternalServerError, match="the weights are damaged"):
            client.completions.create(model="tiny", prompt="x y z")
    assert client.completions.create(model="tiny", prompt="x").choices[0].finish_reason
    assert running.metric('dynaspec_requests_total{outcome="failed"}') == 2
