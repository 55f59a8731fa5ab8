"""Errors that are shown to the user as one line: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Callable


class DynaSpecError(Exception):
    """A failure the user can act on; the command line prints ``Error: <message>``, exit code 1."""

    exit_code = 1


def not_finite(name: str) -> DynaSpecError:
    """The error of logits, called ``name``, that are no numbers."""
    return DynaSpecError(
        f"{name} hold NaN or infinite values: the weights may be damaged, or the dtype overflows; "
        "check the model's files, or try --dtype float32"
    )


def bad_score() -> DynaSpecError:
    """The error of drafter scores that are no numbers."""
    return DynaSpecError(
        "the drafter's scores hold NaN: its weights may be damaged, or its dtype overflows; check "
        "the drafter's folder, or try --dtype float32"
    )


class FiniteLogits:
    """Within it the ``ValueError`` of a head's op for logits that are no numbers becomes
    ``error()``. A class, since it is entered in every draft step."""

    def __init__(self, error: Callable[[], DynaSpecError]) -> None:
        self._error = error

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError) and "expected finite logits" in str(error):
            raise self._error() from error


def is_utf8(text: str) -> bool:
    """Has ``text`` no half characters (lone surrogates)?"""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class UsageError(DynaSpecError):
    """An option or combination of options that can never work; exit code 2."""

    exit_code = 2


class ExactnessError(DynaSpecError):
    """Speculative output differs from the target's own, and the difference is no numerical tie;
    exit code 3."""

    exit_code = 3
