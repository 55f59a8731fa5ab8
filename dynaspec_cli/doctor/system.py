"""What runs where on this machine, and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli import __version__, ops
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.target.cache_dir import cache_root
from dynaspec_cli.target.demo_package import DEFAULT_MODEL, DEFAULT_MODULE
from dynaspec_cli.tuning.machine import cpu_name

CUDA_STATUS = "compiled, traced and emulated, not run on a GPU"
"""How far the CUDA kernels have been tested; changed when a GPU has run their tests."""

ISA_LEVELS = ("scalar", "avx2", "avx_vnni", "avx512", "avx512_bf16")
PACKAGES = ("transformers", "tokenizers", "safetensors", "huggingface_hub", "gguf", "accelerate")


def system_facts(device: torch.device) -> dict[str, Any]:
    """Versions, kernels in use on ``device`` with the reason, CPU, CUDA, memory, cache folder."""
    backend = ops.backend(device)
    return {
        "versions": {
            "dynaspec": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "backend": backend,
        "backend_reason": ops.backend_reason(device),
        "fallback": backend == "torch",
        "isa_levels": {level: level in _available() for level in ISA_LEVELS},
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": cuda_facts(),
        "memory_bytes": memory_limit(),
        "memory_available_bytes": available_memory(),
        "cache_folder": str(cache_root()),
        "cache_free_bytes": _free_disk(cache_root()),
        "default_model": {
            "name": DEFAULT_MODEL,
            "installed": importlib.util.find_spec(DEFAULT_MODULE) is not None,
        },
    }


def cuda_facts() -> dict[str, Any]:
    """Devices that torch sees, and the state of our kernels."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "torch_cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(devices)],
        "kernels_in_extension": EXTENSION.has_cuda,
        "kernels_status": CUDA_STATUS,
        "nvcc": shutil.which("nvcc"),
    }


def _available() -> tuple[str, ...]:
    if EXTENSION.module is None:
        return ()
    return tuple(EXTENSION.module.available_isas().split(","))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup(name: str) -> int | None:
    try:
        return int(Path(f"/sys/fs/cgroup/{name}").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max": no limit
        return None


def _cgroup_used() -> int | None:
    """Bytes in use but for pages of files, which the system gives back when they are wanted."""
    used = _cgroup("memory.current")
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8").splitlines()
        idle = dict(line.split() for line in lines).get("inactive_file", "0")
    except (OSError, ValueError):
        return used
    return None if used is None else max(0, used - int(idle))


def memory_limit() -> int | None:
    """Bytes this process may use at most: the machine's memory or its container's limit."""
    known = [n for n in (_meminfo("MemTotal"), _cgroup("memory.max")) if n is not None]
    return min(known, default=None)


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that can be had now on a device; of the host, without swapping."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    free, limit, used = _meminfo("MemAvailable"), _cgroup("memory.max"), _cgroup_used()
    if limit is not None and used is not None:
        return min(limit - used, free) if free is not None else limit - used
    return free


def _free_disk(folder: Path) -> int | None:
    for place in (folder, *folder.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return None
