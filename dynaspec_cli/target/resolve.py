"""From a ``--model`` value to where its files are, with every way this can fail said in one
line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.demo_package import (
    DEFAULT_MODEL,
    SINGLE_FILE_PACKAGES,
    ChunkedFile,
    default_chunks,
    single_file,
)
from dynaspec_cli.target.hub import Hub, HuggingFaceHub, gguf_file, offered_files

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILE = re.compile(rf"(?P<name>{HUB_NAME.pattern}):(?P<quantisation>[\w-]+)")
GGUF_MAGIC = b"GGUF"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class ModelSource:
    """Exactly one of ``folder`` (safetensors) and ``gguf`` (a file, or the default model's pieces)
    is set."""

    name: str
    folder: Path | None = None
    gguf: Path | ChunkedFile | None = None


def resolve_model(
    model: str | ModelSource | None, option: str = "--model", hub: Hub | None = None
) -> ModelSource:
    """Find ``model``: None or the default's name (the embedded package), a package of
    ``SINGLE_FILE_PACKAGES``, a ``.gguf`` file, a folder, a hub name, or a hub name with the
    quantisation of one of its GGUF files, ``NAME:Q4_K_M`` (downloaded, or taken from the hub's
    cache when offline). What was found before is given back.

    Raises ``DynaSpecError``, which names ``option``; nothing is converted or loaded here.
    """
    if isinstance(model, ModelSource):
        return model
    if (local := resolve_local(model, option)) is not None:
        return local
    assert model is not None
    hub = HuggingFaceHub(option) if hub is None else hub
    if not model.startswith((".", "~", "/")) and (match := HUB_FILE.fullmatch(model)):
        file = gguf_file(hub, match["name"], match["quantisation"], option)
        return ModelSource(model, gguf=_gguf_file(file))
    looks_like_path = (
        model.endswith(".gguf") or model.startswith((".", "~", "/")) or model.count("/") > 1
    )
    if looks_like_path or not HUB_NAME.fullmatch(model):
        raise DynaSpecError(
            f"{option} {model}: no such file or folder; expected a hub name, a model folder or a "
            ".gguf file"
        )
    folder = hub.folder(model)
    if not (folder / "config.json").is_file() and (hint := offered_files(hub, model)):
        raise DynaSpecError(f"{option} {model}: a repository of GGUF files; {hint}")
    check_folder(folder)
    return ModelSource(model, folder=folder)


def resolve_local(model: str | None, option: str = "--model") -> ModelSource | None:
    """``resolve_model`` for what is on this machine; None for what may be a hub name."""
    if model is None or model == DEFAULT_MODEL:
        return ModelSource(DEFAULT_MODEL, gguf=default_chunks())
    if model in SINGLE_FILE_PACKAGES:
        return ModelSource(model, gguf=single_file(model))
    if not model.strip():
        raise DynaSpecError(
            f"{option}: expected a hub name, a folder or a .gguf file, got an empty text"
        )
    path = Path(model).expanduser()
    if path.is_dir():
        check_folder(path)
        return ModelSource(path.resolve().name, folder=path)
    if path.is_file():
        return ModelSource(path.stem, gguf=_gguf_file(path))
    return None


def check_folder(folder: Path) -> None:
    """Refuse a folder without config.json or without safetensors weights; pickles are never
    read."""
    if not (folder / "config.json").is_file():
        gguf = sorted(folder.glob("*.gguf"))
        hint = (
            f"give the file itself: --model {gguf[0]}"
            if gguf
            else "expected a model folder of transformers"
        )
        raise DynaSpecError(f"{folder}: no config.json there; {hint}")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise DynaSpecError(
            f"{folder}: {pickles[0]} is a pickle, which can run code when it is read and is "
            "refused; "
            "convert the weights to model.safetensors first"
        )
    raise DynaSpecError(
        f"{folder}: no weights there; expected model.safetensors (or its shards) beside config.json"
    )


def _gguf_file(path: Path) -> Path:
    if path.suffix in PICKLE_SUFFIXES:
        raise DynaSpecError(
            f"{path}: a pickle can run code when it is read and is refused; expected a model "
            "folder with safetensors or a .gguf file"
        )
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != GGUF_MAGIC:
        raise DynaSpecError(
            f"{path}: no GGUF file (it starts with {magic!r}, expected {GGUF_MAGIC!r}); expected "
            "a model folder or a .gguf file"
        )
    return path
