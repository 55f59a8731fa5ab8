"""What a request asks for: OpenAI's fields to a prompt and a ``GenerationConfig``.

A field that this server does not know is an error, and so is a known one whose value it cannot
honour; a value that changes nothing (``logprobs`` false, ``tools`` []) is accepted.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.errors import DynaSpecError, is_utf8
from dynaspec_cli.server.errors import ApiError, bad, refused

MAX_STOPS = 16
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

ABOUT_THE_CALLER = frozenset(
    (
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    )
)
"""Accepted, whatever they say: they do not touch the text."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Known, and accepted with these values only."""

SETTINGS = frozenset(
    (
        "chat_template_kwargs",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "model",
        "n",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_k",
        "top_p",
    )
)

Prompt = str | list[int] | list[dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """``prompt``: a text, token ids or, where ``chat``, messages. ``usage``: is the last chunk of
    a stream to carry it. ``chat_arguments``: variables of the chat template."""

    chat: bool
    prompt: Prompt
    config: GenerationConfig
    stream: bool
    usage: bool
    chat_arguments: dict[str, Any] = field(default_factory=dict)


def parse(body: dict[str, Any], chat: bool, model: str, defaults: GenerationConfig) -> Asked:
    """Of a request's JSON object. ``model``: the only one there is. Raises ApiError."""
    given = {name: value for name, value in body.items() if value is not None}
    own = "messages" if chat else "prompt"
    _check_fields(given, own)
    if given.get("model", model) != model:
        raise ApiError(
            404,
            f"model: {_shown(given['model'])} does not exist; this server has {model!r}",
            param="model",
            code="model_not_found",
        )
    if own not in given:
        raise ApiError(400, f"{own}: is missing", param=own, code="missing_required_parameter")
    prompt = _messages(given["messages"]) if chat else _prompt(given["prompt"])
    stream = _boolean(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or not options.keys() <= {
        "include_usage",
        "include_obfuscation",
    }:
        raise bad("stream_options", 'expected {"include_usage": true or false}')
    if options and not stream:
        raise bad("stream_options", "goes with stream true only")
    variables = given.get("chat_template_kwargs", {})
    if not isinstance(variables, dict) or (variables and not chat):
        raise bad("chat_template_kwargs", "expected an object, beside messages")
    config, usage = _config(given, defaults), _boolean(options, "include_usage")
    return Asked(chat, prompt, config, stream, usage, variables)


def _check_fields(given: dict[str, Any], own: str) -> None:
    for name, value in given.items():
        if name in NEUTRAL:
            neutral = NEUTRAL[name]
            if not any(value == known and _alike(value, known) for known in neutral):
                raise bad(name, f"is not supported here (only {_shown(neutral[0])})", "unsupported")
        elif name not in SETTINGS and name not in ABOUT_THE_CALLER and name != own:
            raise ApiError(
                400,
                f"{name[:80]}: no such field here",
                param=name[:80],
                code="unknown_parameter",
            )


def _alike(value: Any, known: Any) -> bool:
    return isinstance(value, bool) == isinstance(known, bool)


def _config(given: dict[str, Any], defaults: GenerationConfig) -> GenerationConfig:
    sampling = defaults.sampling
    if _integer(given, "n", 1) != 1:
        raise bad("n", f"expected 1, got {_shown(given['n'])}; ask once for every answer")
    limit = _integer(given, "max_tokens", defaults.max_new_tokens)
    if "max_completion_tokens" in given:
        if "max_tokens" in given:
            raise bad("max_tokens", "expected it or max_completion_tokens, got both")
        limit = _integer(given, "max_completion_tokens", limit)
    if limit < 1:
        raise bad(
            "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens",
            f"expected at least 1, got {limit}",
        )
    try:
        return replace(
            defaults,
            max_new_tokens=limit,
            stop=_stops(given) if "stop" in given else defaults.stop,
            sampling=replace(
                sampling,
                temperature=_number(given, "temperature", sampling.temperature),
                top_k=_integer(given, "top_k", sampling.top_k),
                top_p=_number(given, "top_p", sampling.top_p),
                min_p=_number(given, "min_p", sampling.min_p),
                seed=_integer(given, "seed", secrets.randbits(62)),
            ),
        )
    except DynaSpecError as error:
        raise refused(error) from None


def _stops(given: dict[str, Any]) -> tuple[str, ...]:
    stop = given["stop"]
    texts = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(texts, list)
        or len(texts) > MAX_STOPS
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise bad("stop", f"expected a text or a list of at most {MAX_STOPS}, none of them empty")
    return tuple(_text(text, "stop") for text in texts)


def _prompt(value: Any) -> Prompt:
    """A text or token ids; a list of one of them is that one."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return _text(value, "prompt")
    if isinstance(value, list) and value:
        if all(type(token) is int for token in value):
            return value
        if all(isinstance(item, str | list) for item in value):
            raise bad("prompt", f"expected one prompt a request, got {len(value)}")
    raise bad("prompt", "expected a text or a list of token ids")


def _messages(value: Any) -> Prompt:
    if not isinstance(value, list) or not value:
        raise bad("messages", "expected a list of at least one message")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad(where, 'expected {"role": ..., "content": ...}')
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad(f"{where}.role", f"expected one of {', '.join(ROLES)}, got {_shown(role)}")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], {}):
            raise bad(f"{where}.{name[:80]}", "is not supported here", "unsupported")
    return {"role": ROLES[role], "content": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    """A text, or parts that are all text."""
    if isinstance(content, str):
        return _text(content, where)
    if isinstance(content, list) and content:
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise bad(where, "only parts of type text are supported here", "unsupported")
            if not isinstance(part.get("text"), str):
                raise bad(where, "expected a text in every part")
        return _text("".join(part["text"] for part in content), where)
    raise bad(where, "expected a text")


def _text(text: str, where: str) -> str:
    if not is_utf8(text):
        raise bad(where, "holds half a character (a lone surrogate)", "invalid_utf8")
    return text


def _boolean(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise bad(name, f"expected true or false, got {_shown(value)}")
    return value


def _integer(given: dict[str, Any], name: str, default: int) -> int:
    value = given.get(name, default)
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise bad(name, f"expected an integer, got {_shown(value)}")
    return value


def _number(given: dict[str, Any], name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(name, f"expected a number, got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise bad(name, "is too large") from None


def _shown(value: Any) -> str:
    """A value in a message, not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
