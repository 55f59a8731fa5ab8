"""Tensors of a model folder straight from its safetensors files, mapped into memory and not
copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dynaspec_cli.errors import DynaSpecError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD_NAMES = ("lm_head.weight", "model.embed_tokens.weight")


class WeightFiles:
    """Named tensors over one file or its shards; pages are read when a tensor is first used."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._files: dict[str, Any] = {}
        if (folder / INDEX).is_file():
            names = sorted(
                set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            )
        else:
            names = (
                [SINGLE]
                if (folder / SINGLE).is_file()
                else sorted(p.name for p in folder.glob("*.safetensors"))
            )
        for name in names:
            try:
                file = safe_open(folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise DynaSpecError(
                    f"{folder / name}: the weights cannot be read ({error}); fetch or convert "
                    "them again"
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

    def head(self) -> Tensor:
        """The LM head's rows: its own tensor, or the embeddings it is tied to."""
        for name in HEAD_NAMES:
            if name in self:
                return self[name]
        raise DynaSpecError(
            f"{self.folder}: no LM head in the weights; expected one of {', '.join(HEAD_NAMES)}"
        )
