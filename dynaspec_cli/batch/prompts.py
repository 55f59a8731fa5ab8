"""The file of prompts: JSON lines ``{"id", "prompt"}`` or ``{"id", "messages"}``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import UsageError, is_utf8

KEYS = ("id", "prompt", "messages")


@dataclass(frozen=True)
class BatchPrompt:
    """``line``: its number in the file, from 1; ``id`` None where it has none that can be used.
    One of ``text``, ``messages`` and ``tokens`` (ids, with those that begin a text) is there, or
    ``error``, which says what is wrong with it. ``temperature``: its own, None: the request's."""

    line: int
    id: str | int | None = None
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    error: str | None = None
    tokens: tuple[int, ...] | None = None
    temperature: float | None = None

    @property
    def key(self) -> str:
        """What its result is known by."""
        return f"line {self.line}" if self.id is None else result_key({"id": self.id})

    @property
    def name(self) -> dict[str, Any]:
        """How its result begins."""
        return {"id": None, "line": self.line} if self.id is None else {"id": self.id}


def result_key(result: Mapping[str, Any]) -> str:
    """``BatchPrompt.key`` of a line of the output."""
    if result.get("id") is None:
        return f"line {result.get('line')}"
    return f"id {json.dumps(result['id'])}"


def read_prompts(path: Path) -> list[BatchPrompt]:
    """Every line that is not blank; a bad one has an ``error``. Raises UsageError where the file
    cannot be read or holds no line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--prompt-file {path}: cannot be read ({error.strerror})") from error
    found: list[BatchPrompt] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        prompt = _parse(raw, number)
        first = seen.setdefault(prompt.key, number)
        if first != number:
            prompt = BatchPrompt(number, error=f"id {prompt.id!r} stands in line {first} already")
        found.append(prompt)
    if not found:
        raise UsageError(f"--prompt-file {path}: expected JSON lines, got an empty file")
    return found


def _parse(raw: bytes, number: int) -> BatchPrompt:
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
        return BatchPrompt(number, error=f"expected a JSON object, got no valid {kind}")
    if not isinstance(data, dict):
        return BatchPrompt(number, error=f"expected a JSON object, got {type(data).__name__}")
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        return BatchPrompt(number, error='expected an "id", a text or an integer')
    try:
        return _prompt(data, number, name)
    except ValueError as error:
        return BatchPrompt(number, name, error=str(error))


def _prompt(data: dict[str, Any], number: int, name: str | int) -> BatchPrompt:
    if unknown := sorted(data.keys() - set(KEYS)):
        raise ValueError(f"unknown key {unknown[0]!r}; expected {', '.join(KEYS)}")
    if ("prompt" in data) == ("messages" in data):
        raise ValueError('expected "prompt" or "messages"')
    if "prompt" in data:
        if not isinstance(data["prompt"], str):
            raise ValueError('"prompt": expected a text')
        _check_text(data["prompt"])
        return BatchPrompt(number, name, text=data["prompt"])
    messages = data["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages": expected a list of messages')
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.keys() != {"role", "content"}
            or not all(isinstance(value, str) for value in message.values())
        ):
            raise ValueError('"messages": expected {"role": TEXT, "content": TEXT} each')
        _check_text(message["content"])
    return BatchPrompt(number, name, messages=tuple(messages))


def _check_text(text: str) -> None:
    if not is_utf8(text):
        raise ValueError("the text holds half a character (a lone surrogate)")
