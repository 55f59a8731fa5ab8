"""OpenAI's response objects, whole and in chunks."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from dynaspec_cli import __version__
from dynaspec_cli.engine.events import GenerationResult

FINISH = {"eos": "stop", "stop": "stop", "length": "length"}
END = b"data: [DONE]\n\n"


class Reply:
    """The answer to one request. ``usage``: every chunk has the field, as OpenAI's do where it was
    asked for."""

    def __init__(self, chat: bool, model: str, usage: bool = False) -> None:
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._chat, self._usage = chat, usage
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"dynaspec-{__version__}",
        }

    def whole(self, result: GenerationResult, queued_s: float) -> dict[str, Any]:
        """The object of a request without ``stream``."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": _reason(result)}
        if self._chat:
            message = {"role": "assistant", "content": result.text, "refusal": None}
            choice["message"] = message
        else:
            choice["text"] = result.text
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [choice],
            "usage": usage(result),
            "timings": timings(result, queued_s),
        }

    def first(self) -> bytes | None:
        """The chunk that says who speaks; None where there is none."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self._chat else None

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text} if self._chat else text, None)

    def last(self, result: GenerationResult) -> bytes:
        """The chunk with the finish reason."""
        return self._chunk({} if self._chat else "", _reason(result))

    def totals(self, result: GenerationResult, queued_s: float) -> bytes:
        """The chunk without a choice that ends a stream with ``include_usage``."""
        return event(
            {
                **self._head,
                "object": self._kind,
                "choices": [],
                "usage": usage(result),
                "timings": timings(result, queued_s),
            }
        )

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _chunk(self, content: Any, reason: str | None) -> bytes:
        choice = {
            "index": 0,
            "delta" if self._chat else "text": content,
            "logprobs": None,
            "finish_reason": reason,
        }
        extra = {"usage": None} if self._usage else {}
        return event({**self._head, "object": self._kind, "choices": [choice], **extra})


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()


def usage(result: GenerationResult) -> dict[str, Any]:
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.new_tokens,
        "total_tokens": result.prompt_tokens + result.new_tokens,
        "prompt_tokens_details": {"cached_tokens": result.cached_prompt_tokens},
    }


def timings(result: GenerationResult, queued_s: float) -> dict[str, Any]:
    """A field of our own, with the names of ``generate --json``."""
    return {
        "queued_s": queued_s,
        "time_to_first_token_s": result.time_to_first_token_s,
        "decode_s": result.decode_s,
        "tokens_per_second": result.tokens_per_second,
        "mean_acceptance_length": result.mean_acceptance_length,
        "mean_shortlist_size": result.mean_shortlist_size,
    }


def _reason(result: GenerationResult) -> str:
    return FINISH[result.finish_reason]
