"""From a prompt to its line, by one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dynaspec_cli.batch.prompts import BatchPrompt
from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.drafters.options import parse_options
from dynaspec_cli.engine.api import Engine, never
from dynaspec_cli.engine.events import SCHEMA, DoneEvent
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.main import describe
from dynaspec_cli.ops.pages import give_back


@dataclass(frozen=True)
class BatchRequest:
    """How every prompt is answered, and by what engine; can be sent to another process.
    ``threads``: of one engine, None: PyTorch's own number."""

    config: GenerationConfig
    chat: bool = False
    system: str | None = None
    model: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    drafter: str = "auto"
    drafter_option: tuple[str, ...] = ()
    chat_arguments: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Engine:
        return Engine.load(
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            drafter=self.drafter,
            drafter_options=parse_options(self.drafter_option),
        )


def answer(
    engine: Engine,
    prompt: BatchPrompt,
    request: BatchRequest,
    should_stop: Callable[[], bool] = never,
) -> dict[str, Any] | None:
    """The line of a prompt: what ``generate --json`` prints for it alone, or its error. None where
    it was interrupted."""
    if prompt.error is not None:
        return failure(prompt, prompt.error)
    try:
        *_, done = engine.generate(
            _encode(engine, prompt, request),
            _config(prompt, request),
            speculative=request.drafter != "none",
            should_stop=should_stop,
        )
    except Exception as error:
        return failure(prompt, describe(error)[0])
    finally:
        give_back()
    assert isinstance(done, DoneEvent)
    if done.result.finish_reason == "interrupted":
        return None
    return {**prompt.name, **done.result.to_json()}


def failure(prompt: BatchPrompt, message: str) -> dict[str, Any]:
    """The line of a prompt that has no answer."""
    return {**prompt.name, "schema": SCHEMA, "error": " ".join(message.split())}


def _config(prompt: BatchPrompt, request: BatchRequest) -> GenerationConfig:
    if prompt.temperature is None:
        return request.config
    sampling = replace(request.config.sampling, temperature=prompt.temperature)
    return replace(request.config, sampling=sampling)


def _encode(engine: Engine, prompt: BatchPrompt, request: BatchRequest) -> list[int]:
    if prompt.tokens is not None:
        return list(prompt.tokens)
    variables = request.chat_arguments
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    if prompt.messages is not None:
        if system:
            raise DynaSpecError("--system goes with prompts; messages say their own")
        return engine.tokenizer.chat(prompt.messages, **variables)
    assert prompt.text is not None
    if not request.chat:
        return engine.encode(prompt.text)
    question = {"role": "user", "content": prompt.text}
    return engine.tokenizer.chat([*system, question], **variables)
