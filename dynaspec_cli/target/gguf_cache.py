"""GGUF files converted once: cache folders keyed by the file's hash, the dtype and the converter's
version.

A folder appears by one rename when it is whole, holds a manifest of its files, and is built under a
lock, so that a killed or a second process can never show half a model. A folder that differs from
its manifest is built again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.config import is_known
from dynaspec_cli.gguf_files.model import GgufModel
from dynaspec_cli.target.cache_dir import (
    ENVIRONMENT,
    MANIFEST,
    cache_root,
    make_folder,
    read_manifest,
    source_hash,
    write_manifest,
)
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.events import LoadProgress, ProgressCallback
from dynaspec_cli.target.gguf_convert import convert_known, convert_other
from dynaspec_cli.target.gguf_tokenizer import open_checked

CONVERTER_VERSION = 3
"""Raised whenever the same file would be converted to other bytes."""

SLACK_BYTES = 128 << 20


def converted(
    source: Path | ChunkedFile, name: str, dtype: torch.dtype, progress: ProgressCallback
) -> Path:
    """The model folder of a GGUF file in ``dtype``, built now if need be.

    Raises ``DynaSpecError`` for a damaged file, one that ``transformers`` cannot read, and a disk
    without room.
    """
    folder, digest = _place(source, dtype, progress)
    if read_manifest(folder) is not None:
        return folder
    root, key, label = folder.parent, folder.name, str(dtype).removeprefix("torch.")
    make_folder(root)
    with _lock(root / f"{key}.lock", progress):
        if read_manifest(folder) is not None:
            return folder
        _remove_leftovers(root, key)
        _build(source, folder, name, dtype, {"source_sha256": digest, "dtype": label}, progress)
    return folder


def found(
    source: Path | ChunkedFile, dtype: torch.dtype, progress: ProgressCallback
) -> Path | None:
    """The model folder of a GGUF file, if it was converted before."""
    folder, _ = _place(source, dtype, progress)
    return None if read_manifest(folder) is None else folder


def _place(
    source: Path | ChunkedFile, dtype: torch.dtype, progress: ProgressCallback
) -> tuple[Path, str]:
    """(where its conversion lies or will lie, the file's hash)."""
    if isinstance(source, ChunkedFile):
        digest = source.sha256
    else:
        digest = source_hash(
            source, lambda share: progress(LoadProgress("hashing the file", share))
        )
    label = str(dtype).removeprefix("torch.")
    return cache_root() / "models" / f"{digest[:24]}-{label}-v{CONVERTER_VERSION}", digest


def known_head_hash(folder: Path) -> str | None:
    """The head's hash that the conversion recorded; None for folders it did not make."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["head_hash"])
    return None


def _build(
    source: Path | ChunkedFile,
    folder: Path,
    name: str,
    dtype: torch.dtype,
    facts: dict[str, str],
    progress: ProgressCallback,
) -> None:
    work = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
    try:
        work.mkdir()
        model = open_checked(source)
        _require_space(work, model.tensors.num_values * dtype.itemsize)
        if is_known(model):
            digest = convert_known(model, work, dtype, progress)
        else:
            digest = _by_transformers(model, source, work, name, dtype, progress)
        progress(LoadProgress("checking the result"))
        write_manifest(work, {**facts, "head_hash": digest})
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    except Exception as error:
        if _is_disk_full(error):
            raise DynaSpecError(_no_space(folder.parent)) from error
        if isinstance(error, OSError):
            raise DynaSpecError(
                f"{name}: the converted model cannot be written to {folder.parent} ({error}); set "
                f"{ENVIRONMENT} to another folder"
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _by_transformers(
    model: GgufModel,
    source: Path | ChunkedFile,
    work: Path,
    name: str,
    dtype: torch.dtype,
    progress: ProgressCallback,
) -> str:
    """It reads one whole file."""
    if isinstance(model.keys.get("split.count"), int) and model.keys["split.count"] != 1:
        raise DynaSpecError(
            f"{name}: a split GGUF file of architecture {model.architecture!r}, which has no "
            "native layers; join its shards first (llama-gguf-split --merge)"
        )
    if not isinstance(source, ChunkedFile):
        return convert_other(model, source, work, dtype, name, progress)
    _require_space(work, source.size)
    progress(LoadProgress("joining the model's pieces"))
    file = work / "source.gguf"
    source.assemble(file)
    digest = convert_other(model, file, work, dtype, name, progress)
    file.unlink()
    return digest


@contextlib.contextmanager
def _lock(path: Path, progress: ProgressCallback) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(LoadProgress("waiting for another process that converts this model"))
        lock.acquire()
    except OSError as error:
        raise DynaSpecError(
            f"the converted model cannot be written to {path.parent} ({error.strerror}); set "
            f"{ENVIRONMENT} to a folder you can write to"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(root: Path, key: str) -> None:
    """Folders of killed conversions (the lock is held, so nobody works in them) and of earlier
    versions of the converter."""
    earlier = (root / f"{key.rpartition('-v')[0]}-v{n}" for n in range(1, CONVERTER_VERSION))
    for stale in (*root.glob(f"{key}.tmp-*"), *earlier):
        shutil.rmtree(stale, ignore_errors=True)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SLACK_BYTES:
        raise DynaSpecError(
            f"{_no_space(folder.parent)} ({(needed + SLACK_BYTES) / 1e9:.1f} GB needed, "
            f"{free / 1e9:.1f} GB free)"
        )


def _no_space(folder: Path) -> str:
    return (
        f"No space left for the converted model in {folder}: free some, "
        f"or set {ENVIRONMENT} to a folder on another disk"
    )


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)
