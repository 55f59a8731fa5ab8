"""What torchrun says of this process. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dynaspec_cli.errors import DynaSpecError


@dataclass(frozen=True)
class Launch:
    """Process ``rank`` of ``world``, the ``local_rank``-th of ``local_world`` on its machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def launched() -> Launch | None:
    """None for a process of its own; torchrun with one process starts such a one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        found = Launch(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError) as error:
        raise DynaSpecError(
            f"torchrun: expected numbers in {', '.join(names)} ({error})"
        ) from error
    return found if found.world > 1 else None
