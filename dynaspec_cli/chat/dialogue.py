"""The messages of a conversation and the engine that answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from dynaspec_cli.chat.transcript import STOP, written
from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import DoneEvent, Event, GenerationResult
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.pages import give_back


class Dialogue:
    """Messages by turns. The engine keeps what it has read: every answer is a request for the whole
    conversation, of which it reads what is new.

    ``results``: of every answer since the start, taken back or not. Answer k is drawn with seed +
    k, so that a question asked again can have another answer. ``arguments``: variables of the chat
    template. ``plain``: the model has none, and continues a transcript (transcript.py).
    """

    def __init__(
        self,
        engine: Engine,
        config: GenerationConfig,
        *,
        system: str | None = None,
        speculative: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.plain = engine.tokenizer.chat_template is None
        if self.plain and arguments:
            raise DynaSpecError(
                f"--chat-arg: {engine.target.name} has no chat template (it is a base model)"
            )
        self.config = replace(config, stop=(*config.stop, STOP)) if self.plain else config
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.results: list[GenerationResult] = []
        self._speculative = speculative
        self._arguments = dict(arguments or {})
        self._conversation = engine.conversation()

    @property
    def notice(self) -> str | None:
        """What a user should know about how messages are written."""
        if not self.plain:
            return None
        return (
            f"{self.engine.target.name} is a base model without a chat template: it continues a "
            "plain transcript, and an instruction-tuned --model answers better"
        )

    @property
    def messages(self) -> list[dict[str, str]]:
        """All of them, the system message first."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.turns]

    def ask(self, text: str, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """The events of an answer to ``text``. Both are kept when it has ended, cut short or not,
        and neither where it has no text or fails (DynaSpecError, as ``Engine.generate``)."""
        question = {"role": "user", "content": text}
        ids = self._encode([*self.messages, question])
        self._check_room(len(ids))
        sampling = replace(self.config.sampling, seed=self.config.sampling.seed + len(self.results))
        for event in self._conversation.generate(
            ids,
            replace(self.config, sampling=sampling),
            speculative=self._speculative,
            should_stop=should_stop,
        ):
            if isinstance(event, DoneEvent):
                self.results.append(event.result)
                if event.result.text or event.result.finish_reason != "interrupted":
                    text = event.result.text
                    content = text.strip() if self.plain else text
                    answer = {"role": "assistant", "content": content}
                    self.turns += [question, answer]
            yield event
        give_back()

    def _check_room(self, tokens: int) -> None:
        try:
            self.engine.limit(tokens, self.config)
        except DynaSpecError as error:
            if not self.turns:
                raise
            raise DynaSpecError(
                f"the conversation has {tokens} tokens, {self.engine.target.name} takes "
                f"{self.engine.target.max_context} in all; /reset begins anew, /undo takes the "
                "last question back"
            ) from error

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        if self.plain:
            return self.engine.encode(written(messages))
        return self.engine.tokenizer.chat(messages, **self._arguments)

    def take_back(self) -> str | None:
        """Drop the last question and its answer; the question, or None where there is none. Their
        rows are dropped when the next question shows what is still needed."""
        if not self.turns:
            return None
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        return question

    def reset(self) -> None:
        """Drop all turns and what the engine has read; the system message stays."""
        self.turns.clear()
        self._conversation.reset()

    def to_json(self) -> dict[str, Any]:
        """What ``/save`` writes: a line of ``--prompt-file FILE.jsonl`` has the same "messages"."""
        return {"schema": 1, "model": self.engine.target.name, "messages": self.messages}
