"""From a suite's turns to token ids: the same ids for every arm."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from dynaspec_cli.bench.method import Codec
from dynaspec_cli.bench.suites import Prompt
from dynaspec_cli.errors import UsageError

FORMATS = ("auto", "raw", "dialogue", "chat")
"""``raw``: the text as it is. ``dialogue``: "User: ... Assistant:", for base models. ``chat``: the
tokenizer's chat template. ``auto``: chat where there is a template, else raw."""

CODE_INSTRUCTION = "Complete the following code.\n\n"


def is_continuation(task: str) -> bool:
    """Tasks whose prompts are texts to go on with, not questions; no format is put around them."""
    return task == "text" or task.startswith("rare_")


class PromptFormat:
    """Turns prompts into ids and remembers how, for the report.

    ``max_prompt_tokens`` keeps the first N tokens of each turn's text (raw: the begin-of-text token
    counts; templates: before the template is put around it).
    """

    def __init__(
        self,
        codec: Codec,
        name: str = "auto",
        max_prompt_tokens: int | None = None,
        system: str | None = None,
    ):
        if name not in FORMATS:
            raise UsageError(f"--prompt-format: expected {', '.join(FORMATS)}, got '{name}'")
        if max_prompt_tokens is not None and max_prompt_tokens < 1:
            raise UsageError(f"--max-prompt-tokens: expected at least 1, got {max_prompt_tokens}")
        if name == "chat" and not codec.has_chat_template:
            raise UsageError(
                "--prompt-format chat: expected a tokenizer with a chat template, this model has "
                "none; use raw or dialogue"
            )
        self.name = ("chat" if codec.has_chat_template else "raw") if name == "auto" else name
        if system is not None and self.name != "chat":
            raise UsageError("--system: expected a chat template to put it in, this run has none")
        self._codec = codec
        self._limit = max_prompt_tokens
        self._system = system

    def settings(self) -> dict[str, Any]:
        """What decides the ids beside the model: the format, and hashes of template and system
        prompt."""
        template = getattr(self._codec, "chat_template", None) if self.name == "chat" else None
        return {
            "prompt_format": self.name,
            "chat_template_sha256": _sha256(template),
            "system_prompt": self._system,
            "system_prompt_sha256": _sha256(self._system),
        }

    def context(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> list[int]:
        """Ids of the context for turn ``len(answers)``, the given answers in their places."""
        continuation = is_continuation(prompt.task)
        if self.name == "chat" and not continuation:
            return self._chat(prompt, answers)
        ids: list[int] = []
        for index, turn in enumerate(prompt.turns[: len(answers) + 1]):
            ids += self._plain_turn(
                prompt, turn, first=index == 0, raw=continuation or self.name == "raw"
            )
            if index < len(answers):
                ids += answers[index]
        return ids

    def _plain_turn(self, prompt: Prompt, turn: str, first: bool, raw: bool) -> list[int]:
        if raw:
            text = turn if first else f"\n\n{turn}"
            return self._codec.encode(text, start=first)[: self._limit]
        text = self._cut(_instructed(prompt, turn))
        frame = f"{'' if first else chr(10) * 2}User: {text}\n\nAssistant:"
        return self._codec.encode(frame, start=first)

    def _chat(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> list[int]:
        messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        for index, turn in enumerate(prompt.turns[: len(answers) + 1]):
            messages.append({"role": "user", "content": self._cut(_instructed(prompt, turn))})
            if index < len(answers):
                answer = self._codec.decode(answers[index])
                messages.append({"role": "assistant", "content": answer})
        return self._codec.chat(messages)

    def _cut(self, text: str) -> str:
        if self._limit is None:
            return text
        ids = self._codec.encode(text, start=False)
        return text if len(ids) <= self._limit else self._codec.decode(ids[: self._limit])


def _instructed(prompt: Prompt, turn: str) -> str:
    return CODE_INSTRUCTION + turn if prompt.task == "code" else turn


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()
