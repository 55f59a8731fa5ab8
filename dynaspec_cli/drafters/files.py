"""The files of a drafter folder: config.json and named tensors, read and not judged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
INDEX = ".index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TRAINERS_FILES = ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth")
"""What training runs leave beside the weights."""


class DrafterFiles:
    """``folder`` and ``name`` (what reports call the drafter); ``options``: what the user said
    about it (``--drafter-option``); ``config``: config.json as plain JSON, since the classes of
    ``transformers`` would fill in defaults of their own. Python files of a folder are never run.

    Weights are, in this order: model.safetensors, its shards with their index, pytorch_model.bin,
    its shards, the only safetensors file of another name. Of the pickled ones those alone are read
    that hold nothing but named tensors (``weights_only``). Tensors are read when asked for; their
    names and shapes cost the headers alone where they are safetensors.
    """

    def __init__(self, folder: Path, name: str, options: Mapping[str, str] | None = None) -> None:
        self.folder, self.name = folder, name
        self.options = dict(options or {})
        self.config = read_json(folder, CONFIG_FILE)
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the folder, on the CPU. Raises DynaSpecError where there are none, or a
        file is damaged."""
        found: dict[str, Tensor] = {}
        for path in weight_files(self.folder):
            part = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
            for name, tensor in part:
                if name in found:
                    raise DynaSpecError(f"drafter {path}: {name!r} stands in another file too")
                found[name] = tensor
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by name; empty where the folder has no weights."""
        if self._shapes is None:
            self._shapes = {}
            for path in weight_files(self.folder, required=False):
                if path.suffix == ".safetensors":
                    self._shapes |= _header(path)
                else:
                    self._shapes |= {name: tuple(t.shape) for name, t in _pickled(path)}
        return self._shapes


def weight_files(folder: Path, required: bool = True) -> list[Path]:
    """The files of a folder's weights; see ``DrafterFiles``. Where there are none: an empty list,
    or an error if they are ``required``."""
    for single in (WEIGHTS_FILE, PICKLE_FILE):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / f"{single}{INDEX}").is_file():
            return _shards(folder, f"{single}{INDEX}")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if others:
        raise DynaSpecError(
            f"drafter {folder}: {len(others)} safetensors files and neither "
            f"{WEIGHTS_FILE} nor {WEIGHTS_FILE}{INDEX}; which of them belong together?"
        )
    if not required:
        return []
    pickles = [
        p.name
        for p in sorted(folder.glob("*"))
        if p.suffix in PICKLES and p.name not in TRAINERS_FILES
    ]
    hint = f"; {pickles[0]} is a pickle of another name and is not read" if pickles else ""
    raise DynaSpecError(f"drafter {folder}: expected {WEIGHTS_FILE} or {PICKLE_FILE}{hint}")


def _shards(folder: Path, index: str) -> list[Path]:
    weight_map = read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DynaSpecError(f"drafter {folder}: {index} names no files (weight_map)")
    names = sorted({str(value) for value in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise DynaSpecError(f"drafter {folder}: {index} names {name!r}, not a file")
        if not (folder / name).is_file():
            raise DynaSpecError(
                f"drafter {folder}: {name}, which {index} names, is missing; copy it again"
            )
    return [folder / name for name in names]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a drafter's folder."""
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DynaSpecError(
            f"drafter {folder}: no {name}; expected a drafter's or a language model's folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DynaSpecError(f"drafter {folder}: {name} is not valid JSON ({error})") from None
    except OSError as error:
        raise DynaSpecError(f"drafter {folder}: {name} cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise DynaSpecError(f"drafter {folder}: {name} holds no JSON object")
    return values


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DynaSpecError:
    return DynaSpecError(
        f"drafter {path}: not a readable safetensors file ({error}); copy it again"
    )


def _pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a pickled state dict, whose pickle may name tensors and nothing else."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DynaSpecError(
            f"drafter {path}: refused, it is no pickle of named tensors alone; others can run code "
            "when they are read, so ask its author for model.safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DynaSpecError(
            f"drafter {path}: not a readable PyTorch file ({_first_line(error)}); copy it again"
        ) from error
    if not isinstance(values, dict) or not values:
        raise DynaSpecError(
            f"drafter {path}: expected a state dict (tensors by name), got {_kind(values)}"
        )
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DynaSpecError(
                f"drafter {path}: expected a state dict (tensors by name), but {name!r} holds "
                f"{_kind(value)}"
            )
        yield name, value.detach()


def _kind(value: Any) -> str:
    return "an empty one" if value == {} else type(value).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
