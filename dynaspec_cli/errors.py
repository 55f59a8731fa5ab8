"""Errors that are shown to the user as one line: what was expected, what came, what to do."""

from __future__ import annotations


class DynaSpecError(Exception):
    """A failure the user can act on; the command line prints ``Error: <message>``, exit code 1."""

    exit_code = 1


class UsageError(DynaSpecError):
    """An option or combination of options that can never work; exit code 2."""

    exit_code = 2


class ExactnessError(DynaSpecError):
    """Speculative output differs from the target's own, and the difference is no numerical tie;
    exit code 3."""

    exit_code = 3
