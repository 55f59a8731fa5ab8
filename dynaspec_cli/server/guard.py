"""What every request passes first: the API key, and a line in the log when it has been answered.

A line holds method, path, status and seconds, never a word of a prompt, an answer or a query.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

from dynaspec_cli.server.errors import ApiError

OPEN = ("/health",)
"""Paths that need no key."""


class Guard:
    """An ASGI application around ``app``. ``log`` gets the lines."""

    def __init__(self, app: Any, api_key: str | None, log: Callable[[str], None]) -> None:
        self._app, self._log = app, log
        self._key = None if api_key is None else _digest(api_key.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # the client went away before an answer

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._key is not None and scope["path"] not in OPEN and not self._allowed(scope):
                await _unauthorised()(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        finally:
            path = scope["path"].encode("ascii", "backslashreplace").decode()[:80]
            seconds = time.monotonic() - begun
            self._log(f"{scope['method']} {path} {status} {seconds:.2f} s")

    def _allowed(self, scope: Any) -> bool:
        """Digests are compared, so that neither contents nor length show in the time it takes."""
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = sent.partition(b" ")
        match = hmac.compare_digest(_digest(key.strip()), self._key or b"")
        return match and kind.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorised() -> JSONResponse:
    error = ApiError(
        401, "wrong or missing API key: expected Authorization: Bearer KEY", code="invalid_api_key"
    )
    return JSONResponse(error.to_json(), 401, {"WWW-Authenticate": "Bearer"})
