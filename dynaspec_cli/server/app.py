"""The routes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import DoneEvent, TokensEvent
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.server.asked import Asked, parse
from dynaspec_cli.server.body import read_object
from dynaspec_cli.server.errors import ApiError, bad
from dynaspec_cli.server.guard import Guard
from dynaspec_cli.server.jobs import Job, Jobs
from dynaspec_cli.server.metrics import Metrics
from dynaspec_cli.server.replies import END, Reply, event


@dataclass(frozen=True)
class ServerOptions:
    """``defaults``: of requests that name nothing else; ``chat_arguments``: variables of the chat
    template, likewise. ``model``: the name to be asked for. ``max_body``: bytes."""

    model: str
    defaults: GenerationConfig
    chat_arguments: Mapping[str, Any] = field(default_factory=dict)
    speculative: bool = True
    api_key: str | None = None
    max_queue: int = 32
    max_body: int = 4 << 20


class Service:
    """The handlers of one engine."""

    def __init__(self, engine: Engine, options: ServerOptions) -> None:
        self.engine, self.options = engine, options
        self.metrics = Metrics()
        self.jobs = Jobs(engine, options.speculative, options.max_queue, self.metrics)
        self._started = int(time.time())
        # Long texts take their time, and would keep the event loop from everything else.
        self._tokenizing = ThreadPoolExecutor(2, thread_name_prefix="dynaspec-tokenizer")

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.options.model:
            raise ApiError(
                404,
                f"model: {name[:80]!r} does not exist; this server has {self.options.model!r}",
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        running, waiting = self.jobs.counts
        status = "ok" if self.jobs.alive else "ended"
        facts = {"status": status, "running": running, "waiting": waiting}
        return JSONResponse(facts, 200 if self.jobs.alive else 503)

    async def prometheus(self, request: Request) -> Response:
        text = self.metrics.text(*self.jobs.counts)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.options.model,
            "object": "model",
            "created": self._started,
            "owned_by": "dynaspec",
            "context_length": self.engine.target.max_context,
        }

    async def _answer(self, request: Request, chat: bool) -> Response:
        body = await read_object(request, self.options.max_body)
        asked = parse(body, chat, self.options.model, self.options.defaults)
        self.jobs.check_room()
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._tokenizing, self._encode, asked)
        job = Job(prompt, asked.config)
        reply = Reply(chat, self.options.model, asked.usage)
        self.jobs.submit(job)
        if asked.stream:
            return EventStream(self.jobs, job, _chunks(job, reply, asked.usage))
        async with _until_gone(request.receive, lambda: self.jobs.cancel(job)):
            async for found in job.events():
                if isinstance(found, DoneEvent):
                    return JSONResponse(reply.whole(found.result, job.queued_s))
        raise ApiError(500, "the request ended without a result")

    def _encode(self, asked: Asked) -> list[int]:
        """Prompt ids, few enough to leave room for an answer. Raises ApiError."""
        engine, prompt = self.engine, asked.prompt
        where = "messages" if asked.chat else "prompt"
        if asked.chat:
            text = self._written(asked)
            with _about(where, "context_length_exceeded"):
                engine.check_length(text)
            ids = engine.tokenizer.encode(text, special=False)
        elif isinstance(prompt, str):
            with _about(where, "context_length_exceeded"):
                engine.check_length(prompt)
            with _about(where):
                ids = engine.encode(prompt)
        else:
            ids = list(prompt)  # type: ignore[arg-type]
            vocabulary = engine.target.vocab_size
            if any(not 0 <= token < vocabulary for token in ids):
                raise bad(where, f"expected token ids from 0 to {vocabulary - 1}")
        with _about(where, "context_length_exceeded"):
            engine.limit(len(ids), asked.config)
        return ids

    def _written(self, asked: Asked) -> str:
        """The messages by the chat template. Raises ApiError."""
        tokenizer = self.engine.tokenizer
        if tokenizer.chat_template is None:
            raise bad(
                "messages",
                f"{self.options.model} has no chat template (it is a base model); use "
                "/v1/completions",
                "no_chat_template",
            )
        variables = {**self.options.chat_arguments, **asked.chat_arguments}
        with _about("messages"):
            return tokenizer.written(asked.prompt, **variables)  # type: ignore[arg-type]


@contextmanager
def _about(field: str, code: str = "invalid_value") -> Iterator[None]:
    """What the engine says within is said of a request's field."""
    try:
        yield
    except DynaSpecError as error:
        message = re.sub(r"^--chat(-arg)?:? ", "", str(error))
        raise ApiError(400, message, param=field, code=code) from None


async def _chunks(job: Job, reply: Reply, usage: bool) -> AsyncIterator[bytes]:
    """The events of a stream; an error is one of them, since the status is out."""
    try:
        if (first := reply.first()) is not None:
            yield first
        async for found in job.events():
            if isinstance(found, TokensEvent) and found.text:
                yield reply.piece(found.text)
            elif isinstance(found, DoneEvent):
                yield reply.last(found.result)
                if usage:
                    yield reply.totals(found.result, job.queued_s)
    except ApiError as error:
        yield event(error.to_json())
    yield END


class EventStream(Response):
    """Server-sent events of a job, which ends with its client."""

    def __init__(self, jobs: Jobs, job: Job, chunks: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"cache-control": "no-cache"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._jobs, self._job, self._chunks = jobs, job, chunks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        try:
            async with _until_gone(receive, lambda: self._jobs.cancel(self._job)):
                await send(start)
                async for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._jobs.cancel(self._job)


@asynccontextmanager
async def _until_gone(receive: Any, cancel: Callable[[], None]) -> AsyncIterator[None]:
    """Calls ``cancel`` when the client goes away, or the handler is given up, within."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        cancel()
        raise
    finally:
        watching.cancel()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.to_json(), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Of the router: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    words = {404: "no such path", 405: "this path takes another method"}
    found = ApiError(error.status_code, words.get(error.status_code, "the request is refused"))
    return JSONResponse(found.to_json(), error.status_code, error.headers)


def create_app(service: Service, log: Callable[[str], None]) -> Guard:
    """The ASGI application. The service's thread must have been started."""
    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.model),
        Route("/health", service.health),
        Route("/metrics", service.prometheus),
    ]
    handlers: Any = {ApiError: _api_error, HTTPException: _http_error, Exception: _unforeseen}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(_Logged(app, log), service.options.api_key, log)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Its kind is told, not its text, which may hold a part of a prompt."""
    return JSONResponse(ApiError(500, f"unexpected {type(error).__name__}").to_json(), 500)


class _Logged:
    """Logs the kind of an unforeseen error, which Starlette raises again after its answer."""

    def __init__(self, app: Any, log: Callable[[str], None]) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            self._log(f"unexpected {type(error).__name__}")
