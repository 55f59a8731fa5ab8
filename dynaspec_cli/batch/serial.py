"""All prompts in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dynaspec_cli.batch.answer import BatchRequest, answer
from dynaspec_cli.batch.prompts import BatchPrompt
from dynaspec_cli.engine.api import Engine


def run(
    engine: Engine,
    prompts: Sequence[BatchPrompt],
    request: BatchRequest,
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """Lines as they are made; ends early where asked to stop."""
    for prompt in prompts:
        line = answer(engine, prompt, request, should_stop)
        if line is None:
            return
        yield line
        if should_stop():
            return
