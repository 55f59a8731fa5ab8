"""``provenance.json``: what another person needs to get the same numbers, or to see why they
differ.

Paths are reduced to names: a report is made to be published.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dynaspec_cli import __version__
from dynaspec_cli.errors import DynaSpecError

FILE = "provenance.json"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "safetensors",
    "gguf",
    "llama-cpp-python",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "DYNASPEC_CPU_ISA", "KMP_AFFINITY")
HASH_LIMIT = 1 << 30
"""Larger files are known by their size and ``sha256_of_blocks``: hashing takes up to three seconds
a gigabyte, and a run begins with it."""
BLOCKS, BLOCK_BYTES = 64, 1 << 20


def versions() -> dict[str, str]:
    """Of this package, Python, and the installed ones of ``PACKAGES``."""
    found = {"dynaspec": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, its instruction sets, cores, memory, load, and the variables that move threads."""
    model, flags = _processor()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": model,
        "cpu_flags": flags,
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "environment": {k: os.environ[k] for k in THREAD_VARIABLES if k in os.environ},
    }


def _processor() -> tuple[str, list[str]]:
    info = Path("/proc/cpuinfo")
    model, flags = platform.processor() or platform.machine(), []
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = sorted(value.split())
                break
    return model, flags


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def commit() -> str | None:
    """The checkout's commit, with "-dirty" where tracked files were changed; None outside of
    one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() or None if head.returncode == 0 else None


def file_hashes(files: Iterable[Path], root: Path) -> dict[str, dict[str, Any]]:
    """Name below ``root`` -> bytes and SHA-256 of each file, above ``HASH_LIMIT`` of its blocks."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        size = path.stat().st_size
        digest = {"sha256": _sha256(path)} if size <= HASH_LIMIT else _sha256_of_blocks(path, size)
        found[name] = {"bytes": size, **digest}
    return found


def _sha256_of_blocks(path: Path, size: int) -> dict[str, str]:
    """Of ``BLOCKS`` blocks spread evenly over the file, its first and last bytes included: the
    header with every tensor's name and shape, and a part of most layers."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(BLOCKS):
            file.seek(index * (size - BLOCK_BYTES) // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return {"sha256_of_blocks": digest.hexdigest()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every file below a folder, or of the one file, named from the folder's own name on."""
    if folder.is_file():
        return file_hashes([folder], folder.parent)
    return file_hashes((p for p in folder.rglob("*") if p.is_file()), folder.parent)


def published(value: Any) -> Any:
    """An option's value without the folders of this machine."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return Path(value).name
    if isinstance(value, Mapping):
        return {str(k): published(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [published(v) for v in value]
    return value


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to resume a run that measured something else; names what differs."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DynaSpecError(
            f"--resume: expected {FILE} of the earlier run beside its samples, found none that "
            "can be read"
        ) from error
    # What JSON makes of it is what was stored.
    current = json.loads(json.dumps(identity))
    differing = [k for k in sorted({*before, *current}) if before.get(k) != current.get(k)]
    if differing:
        named = [_differs(key, before.get(key), current.get(key)) for key in differing]
        raise DynaSpecError(
            f"--resume: the earlier run had another {', '.join(named)}; "
            "give the same options, or another --out"
        )


def _differs(key: str, before: Any, current: Any) -> str:
    """A key, and of the artifacts those that differ, the first three by name."""
    if key != "artifacts" or not isinstance(before, dict):
        return key
    names = [k for k in sorted({*before, *current}) if before.get(k) != current.get(k)]
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return f"{key} ({', '.join([*names[:3], *more])})"
