"""Tensors of a model folder straight from its safetensors files, mapped into memory and not
copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
HEAD_NAMES = (HEAD, EMBEDDINGS)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, as ``transformers`` chooses them: the single file
    before the shards of an index; files of other names where neither is there.

    Raises ``DynaSpecError`` for an index that cannot be read.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted({str(name) for name in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DynaSpecError(f"{folder / INDEX}: the index cannot be read ({error})") from error
    return [folder / name for name in names]


class WeightFiles:
    """Named tensors over one file or its shards; pages are read when a tensor is first used."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self.place = str(folder)
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise DynaSpecError(
                    f"{path}: the weights cannot be read ({error}); fetch or convert them again"
                ) from error
            for key in file.keys():  # noqa: SIM118 - not a dict
                self._files[key] = file

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        """All tensor names."""
        return sorted(self._files)

    def __getitem__(self, name: str) -> Tensor:
        file = self._files.get(name)
        if file is None:
            raise DynaSpecError(
                f"{self.folder}: the weights lack {name!r}; the folder does not fit its config.json"
            )
        tensor: Tensor = file.get_tensor(name)
        return tensor

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor, rounded to ``dtype``."""
        return self[name].to(dtype)

    def head(self) -> Tensor:
        """The LM head's rows: its own tensor, or the embeddings it is tied to."""
        for name in HEAD_NAMES:
            if name in self:
                return self[name]
        raise DynaSpecError(
            f"{self.folder}: no LM head in the weights; expected one of {', '.join(HEAD_NAMES)}"
        )
