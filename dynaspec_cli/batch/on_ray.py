"""Prompts over a Ray cluster: Ray Data maps them through actors that hold an engine each.

An actor that dies is started again, and its block of prompts is given out again, by Ray.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dynaspec_cli.batch.answer import BatchRequest, answer
from dynaspec_cli.batch.prompts import BatchPrompt
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.installing import extra

LOCAL = "local"
"""The address of a cluster that is started here and ends with the run."""
MAX_BLOCKS = 4096
"""A prompt a block up to so many: what is done again when an actor dies."""
PATIENCE_S = 5.0


class Answering:
    """The actor: batches of JSON texts to batches of JSON texts."""

    def __init__(self, request: BatchRequest) -> None:
        self._request = request
        self._engine = request.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        prompts = [BatchPrompt(**json.loads(text)) for text in batch["prompt"]]
        lines = [answer(self._engine, prompt, self._request) for prompt in prompts]
        return {"line": [json.dumps(line) for line in lines]}


def run(
    address: str,
    count: int,
    prompts: Sequence[BatchPrompt],
    request: BatchRequest,
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """Lines as blocks end; ends early where asked to stop. Raises DynaSpecError where Ray is not
    there, or fails."""
    os.environ.setdefault("RAY_TQDM", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DynaSpecError(f"--ray needs Ray: {extra('ray')}") from error
    _connect(ray, address)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"prompt": json.dumps(asdict(prompt))} for prompt in prompts]
        blocks = min(len(items), MAX_BLOCKS)
        lines = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            Answering,
            fn_constructor_args=(request,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(count, blocks)),
            num_cpus=request.threads or 1,
        )
        for row in lines.iter_rows():
            yield json.loads(row["line"])
            if should_stop():
                return
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()
        raise DynaSpecError(f"--ray: {first[-1] if first else type(error).__name__}") from error
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    if address != LOCAL:
        _check(address)
    try:
        ray.init(
            address=None if address == LOCAL else address,
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=False if address == LOCAL else None,
        )
    except Exception as error:
        raise DynaSpecError(
            f"--ray {address}: cannot be reached ({type(error).__name__}); give HOST:PORT, auto "
            "for a cluster on this machine, or local to start one"
        ) from error


def _check(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise UsageError(f"--ray: expected HOST:PORT, auto or local, got {address!r}")
    try:
        socket.create_connection((host, int(port)), PATIENCE_S).close()
    except OSError as error:
        raise DynaSpecError(
            f"--ray {address}: cannot be reached ({error.strerror or error}); is a Ray cluster "
            "running there?"
        ) from error
