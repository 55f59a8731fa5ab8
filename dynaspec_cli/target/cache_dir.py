"""The user's cache folder, and folders in it that can prove they are whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError

MANIFEST = "dynaspec_manifest.json"
ENVIRONMENT = "DYNASPEC_CACHE_DIR"
BLOCK = 1 << 22


def cache_root() -> Path:
    """``DYNASPEC_CACHE_DIR``, else the platform's cache folder (``XDG_CACHE_HOME`` or ~/.cache on
    Linux) + "dynaspec"."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
            / "dynaspec"
            / "Cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dynaspec"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynaspec"


def make_folder(path: Path) -> None:
    """Create a cache folder; raises ``DynaSpecError`` where that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DynaSpecError(
            f"The cache folder {path} cannot be made ({error.strerror}); set {ENVIRONMENT} to a "
            "folder you can write to"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def sha256_file(path: Path, report: Callable[[float], None] | None = None) -> str:
    """SHA-256 of a file; ``report`` is told the share read so far."""
    digest, total, done = hashlib.sha256(), max(1, path.stat().st_size), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            if report is not None:
                report(done / total)
    return digest.hexdigest()


def source_hash(path: Path, report: Callable[[float], None] | None = None) -> str:
    """SHA-256 of a source file, remembered by its path, size and time of change, since hashing
    takes a second a gigabyte."""
    status = path.stat()
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    folder = cache_root() / "sources"
    note = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(note.read_text(encoding="utf-8"))
        if data["identity"] == identity and len(data["sha256"]) == 64:
            return str(data["sha256"])
    digest = sha256_file(path, report)
    with contextlib.suppress(OSError, DynaSpecError):  # a read-only cache does without
        make_folder(folder)
        write_text(note, json.dumps({"identity": identity, "sha256": digest}))
    return digest


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Record ``facts`` and the size, time and hash of every file of ``folder``, as its last
    file."""
    files = {
        path.name: {
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    write_text(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole folder; None where the folder or its manifest is missing, or a file
    differs from it.

    A file of the recorded size and time is trusted; one of another time is hashed again.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        moved = False
        for name, facts in manifest["files"].items():
            status = (folder / name).stat()
            if status.st_size != facts["size"]:
                return None
            if status.st_mtime_ns != facts["mtime_ns"]:
                if sha256_file(folder / name) != facts["sha256"]:
                    return None
                facts["mtime_ns"], moved = status.st_mtime_ns, True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if moved:
        with contextlib.suppress(OSError):
            write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    return dict(manifest)
