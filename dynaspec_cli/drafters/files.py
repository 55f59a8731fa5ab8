"""The files of a drafter folder: config.json and named tensors, read and not judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class DrafterFiles:
    """``folder`` and ``name`` (what reports call the drafter); ``config``: config.json as plain
    JSON, since the classes of ``transformers`` would fill in defaults of their own. Tensors are
    read when asked for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.config = _config(folder)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the folder. Raises DynaSpecError where there are none, or the file is
        damaged."""
        path = self.folder / WEIGHTS_FILE
        if not path.is_file():
            pickles = [p.name for p in sorted(self.folder.glob("*")) if p.suffix in PICKLES]
            hint = f"; {pickles[0]} is a pickle and is not read" if pickles else ""
            raise DynaSpecError(f"drafter {self.folder}: expected {WEIGHTS_FILE}{hint}")
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DynaSpecError(
                f"drafter {path}: not a readable safetensors file ({error}); copy it again"
            ) from None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DynaSpecError(
            f"drafter {folder}: no {CONFIG_FILE}; expected a drafter's or a language model's folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DynaSpecError(
            f"drafter {folder}: {CONFIG_FILE} is not valid JSON ({error})"
        ) from None
    if not isinstance(values, dict):
        raise DynaSpecError(f"drafter {folder}: {CONFIG_FILE} holds no JSON object")
    return values
