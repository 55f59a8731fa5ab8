"""What an export reads of its target's folder, without loading the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.events import ProgressCallback, ignore_progress
from dynaspec_cli.target.load import model_folder, stored_head_hash
from dynaspec_cli.target.native_spec import read_config
from dynaspec_cli.target.resolve import resolve_model
from dynaspec_cli.target.weights import WeightFiles

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")
FINAL_NORMS = ("model.norm.weight", "model.language_model.norm.weight")


@dataclass
class TargetFacts:
    """``config``: of its text part. It stands for the target where only sizes and the head's hash
    are asked for."""

    name: str
    folder: Path
    config: dict[str, Any]
    vocab_size: int
    hidden_size: int
    num_layers: int

    @classmethod
    def of(cls, model: str | None, progress: ProgressCallback = ignore_progress) -> TargetFacts:
        """Of a ``--model`` value; a GGUF file is converted once, as training does."""
        source = resolve_model(model)
        folder = model_folder(source, torch.bfloat16, progress)
        config = read_config(folder)
        config = config.get("text_config") or config
        for key in SIZES:
            if not isinstance(config.get(key), int):
                raise DynaSpecError(f"{source.name}: config.json lacks {key}")
        return cls(source.name, folder, config, *(config[key] for key in SIZES))

    @cached_property
    def files(self) -> WeightFiles:
        return WeightFiles(self.folder)

    def head(self) -> Tensor:
        """The LM head [V, d] as stored."""
        return self.files.head()[: self.vocab_size]

    def head_hash(self) -> str:
        return stored_head_hash(self.folder) or head_hash(self.files.head())

    def final_norm(self) -> Tensor:
        """The factor of the norm before the head, float32 [d]: Gemma stores it less one."""
        name = next((name for name in FINAL_NORMS if name in self.files), None)
        if name is None:
            raise DynaSpecError(
                f"{self.name}: the weights have no final norm under {' or '.join(FINAL_NORMS)}"
            )
        stored = self.files[name].float()
        return stored + 1 if str(self.config.get("model_type", "")).startswith("gemma") else stored
