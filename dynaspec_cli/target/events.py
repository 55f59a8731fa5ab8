"""Progress of loading, as events: the command line draws them, the API may ignore them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LoadProgress:
    """One step of loading: ``stage`` is a short phrase for people ("converting weights"),
    ``fraction`` the share of that stage that is done in [0, 1], None where it cannot be known."""

    stage: str
    fraction: float | None = None


ProgressCallback = Callable[[LoadProgress], None]


def ignore_progress(event: LoadProgress) -> None:
    """The callback of callers that show nothing."""
