"""What all peers are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynaspec_cli.config import SamplingConfig


@dataclass(frozen=True)
class PeerSetting:
    """What peers share. ``assistant``: a small model as ``--model`` names one, for
    ``transformers-assisted`` and ``llama.cpp-draft``. ``context``: tokens that llama.cpp keeps room
    for."""

    model: str | None
    dtype: Any
    device: Any
    threads: int
    sampling: SamplingConfig
    eos_ids: frozenset[int]
    context: int
    assistant: str | None = None
