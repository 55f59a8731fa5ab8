"""Reads the JSON object that a request carries."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from dynaspec_cli.server.errors import ApiError

DRAINED = 16 << 20
"""Bytes beyond the limit that are read and dropped, so that the client reads the answer instead of
finding its connection closed."""
PATIENCE_S = 30.0
"""A body that takes longer has no reader."""


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The body of at most ``limit`` bytes. Raises ApiError for anything but a JSON object in
    UTF-8."""
    try:
        data = await asyncio.wait_for(_read(request, limit), PATIENCE_S)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {PATIENCE_S:.0f} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away within the body") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"the body is no UTF-8: byte {error.start} ({error.reason})", code="invalid_utf8"
        ) from None
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else _where(error)
        raise ApiError(400, f"the body is no JSON: {why}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return found


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit + DRAINED:
            break
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
    if size > limit:
        raise ApiError(
            413, f"the body has more than the {limit:,} bytes allowed", code="request_too_large"
        )
    return b"".join(parts)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _where(error: Exception) -> str:
    """Where it is wrong, without the text itself."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (line {error.lineno} column {error.colno})"
    return str(error)
