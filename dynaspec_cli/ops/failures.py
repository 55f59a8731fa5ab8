"""What compiled ops report, as types.

C++ knows ``ValueError`` alone; a kind of failure that callers tell apart gets its class here, at
the border, and nowhere else is a message read.
"""

from __future__ import annotations

NOT_FINITE = ": hidden: expected finite logits, got "
"""Stands in the message of csrc's check and of ``checks.check_finite``."""


class NotFiniteLogits(ValueError):
    """An op's logits hold NaN or infinity."""


class Typed:
    """Within it such a ``ValueError`` of a compiled op becomes its own class. A class, since it is
    entered in every draft step."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if type(error) is ValueError and NOT_FINITE in str(error):
            raise NotFiniteLogits(str(error)) from None


TYPED = Typed()
