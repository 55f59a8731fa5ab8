"""Errors that are shown to the user as one line: what was expected, what came, what to do."""

from __future__ import annotations


class DynaSpecError(Exception):
    """A failure the user can act on; the command line prints ``Error: <message>``, exit code 1."""

    exit_code = 1


class NotFiniteError(DynaSpecError):
    """Logits, probabilities or scores that must be numbers hold NaN or infinity."""

    @classmethod
    def of_target(cls, name: str = "the target's logits") -> NotFiniteError:
        """``name``: what is no number, in the plural."""
        return cls(
            f"{name} hold NaN or infinite values: the weights may be damaged, or the dtype "
            "overflows; check the model's files, or try --dtype float32"
        )

    @classmethod
    def of_drafter(cls) -> NotFiniteError:
        return cls(
            "the drafter's scores hold NaN: its weights may be damaged, or its dtype overflows; "
            "check the drafter's folder, or try --dtype float32"
        )


TEXT_ENCODING = "utf-8-sig"
"""Of text files that people write: UTF-8, and a byte order mark at its beginning is no text."""


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
