"""Errors that are shown to the user as one line: what was expected, what came, what to do."""

from __future__ import annotations


class DynaSpecError(Exception):
    """A failure the user can act on; the command line prints ``Error: <message>``, exit code 1."""

    exit_code = 1


def not_finite(name: str) -> DynaSpecError:
    """The error of logits, called ``name``, that are no numbers."""
    return DynaSpecError(
        f"{name} hold NaN or infinite values: the weights may be damaged, or the dtype overflows; "
        "check the model's files, or try --dtype float32"
    )


class UsageError(DynaSpecError):
    """An option or combination of options that can never work; exit code 2."""

    exit_code = 2


class ExactnessError(DynaSpecError):
    """Speculative output differs from the target's own, and the difference is no numerical tie;
    exit code 3."""

    exit_code = 3
