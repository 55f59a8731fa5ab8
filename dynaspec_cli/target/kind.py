"""What the registry holds: a kind of target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from dynaspec_cli.protocols import Target
from dynaspec_cli.target.events import ProgressCallback, ignore_progress


@dataclass(frozen=True)
class TargetRequest:
    """A model's ``folder`` (config.json, weights, tokenizer; a GGUF file's is the converted one),
    its ``name`` for people, and the dtype and device that it should run in. ``declined``: what the
    kinds asked before have said. ``progress``: is told of what takes long after the weights are
    read."""

    folder: Path
    name: str
    dtype: torch.dtype
    device: torch.device
    declined: Mapping[str, str] = field(default_factory=dict)
    progress: ProgressCallback = ignore_progress


class TargetKind(Protocol):
    """What a name of the registry stands for."""

    def __call__(self, request: TargetRequest) -> Target | str:
        """The target; or, in a few words, why it is none of this kind. Raises ``DynaSpecError``
        where it is, and cannot be loaded."""
        ...
