"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import re
from typing import Any

from dynaspec_cli.errors import DynaSpecError

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """``status``: of HTTP; ``param``: the field of the request that is wrong; ``code``: a word that
    programs can compare."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def to_json(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def bad(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A field with a value that cannot be used."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def refused(error: DynaSpecError) -> ApiError:
    """What the engine's settings refuse, in the words of the API: --top-p is top_p here."""
    option = re.match(r"--([a-z-]+): ", str(error))
    if option is None:
        return ApiError(400, str(error), code="invalid_value")
    return bad(option[1].replace("-", "_"), str(error)[option.end() :])
