"""What is drawn while work goes on."""

from __future__ import annotations

from typing import Self


class View:
    """A context manager whose end closes it, however the work ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what is drawn; may be called twice."""
