"""Loads the compiled ops once, and says what is in use and why.

``dynaspec_cli._ops`` registers the ops. It is built on PyTorch's stable interface, so that one
build serves every torch from a release on, which the record beside it names. ``dynaspec_cli._C``
says what the build can do.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import warnings
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.errors import UsageError
from dynaspec_cli.installing import REBUILD, REBUILD_CUDA

_PACKAGE = Path(__file__).resolve().parent.parent
_RECORD = _PACKAGE / "_build_info.json"
_REBUILD = f"to build it, run {REBUILD}"


@dataclass(frozen=True)
class Extension:
    """``module``: the loaded extension or None; ``reason``: why it is (not) in use, for people."""

    module: Any
    name: str
    reason: str

    @property
    def has_cuda(self) -> bool:
        return self.module is not None and bool(self.module.has_cuda())


def torch_mismatch(record: dict[str, Any], version: str, cuda: str | None) -> str:
    """Why a build cannot be loaded into torch ``version`` for CUDA ``cuda`` (None: a build without
    it); empty if it can.

    Older releases than the build's ``torch_from`` lack functions that it calls. CUDA releases of
    one major number share their runtime library.
    """
    oldest = tuple(record.get("torch_from") or ())
    running = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if not oldest:
        return f"its build record names no torch that it loads into; {_REBUILD}"
    if running < oldest:
        return f"it needs torch {'.'.join(map(str, oldest))} or newer and this is torch {version}"
    built = record.get("cuda")
    if built and (cuda is None or cuda.split(".")[0] != built.split(".")[0]):
        return f"it was built for CUDA {built} and this torch has {cuda}; {_REBUILD}"
    return ""


def ops_library() -> Path:
    """The library that holds the ops; ImportError where it is missing."""
    paths = [_PACKAGE / f"_ops{suffix}" for suffix in EXTENSION_SUFFIXES]
    for path in paths:
        if path.exists():
            return path
    raise ImportError(f"{paths[0].name} is missing")


def _load_ops() -> Any:
    """The module ``_C``, with the ops registered. ImportError or OSError where they do not load,
    UsageError for a DYNASPEC_CPU_ISA that is not there."""
    module = importlib.import_module("dynaspec_cli._C")
    try:
        module.isa()
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    torch.ops.load_library(ops_library())
    return module


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {"built": False, "reason": f"it was never built here; {_REBUILD}"}
    except (OSError, ValueError) as error:
        return {"built": False, "reason": f"its build record {path} cannot be read ({error})"}
    return (
        record if isinstance(record, dict) else {"built": False, "reason": f"{path} is malformed"}
    )


def _load() -> Extension:
    asked = os.environ.get("DYNASPEC_CPU_ISA", "")
    switched_off = os.environ.get("DYNASPEC_EXTENSION", "") == "0"
    record = {} if switched_off else _read_record(_RECORD)
    reason = str(record.get("reason", ""))
    if switched_off:
        reason = "it is switched off by DYNASPEC_EXTENSION=0"
    elif record.get("built"):
        reason = torch_mismatch(record, torch.__version__, torch.version.cuda)
        if not reason:
            try:
                module = _load_ops()
            except (ImportError, OSError) as error:
                reason = f"it does not load ({str(error).splitlines()[0]}); {_REBUILD}"
            else:
                why = (
                    f"DYNASPEC_CPU_ISA={asked}"
                    if asked
                    else f"the best of {module.available_isas()}"
                )
                kinds = "CPU and CUDA kernels" if module.has_cuda() else "CPU kernels"
                built = f"built with torch {record['torch']}"
                return Extension(module, f"cpu-{module.isa()}", f"{kinds}, {built}, {why}")
    if asked:
        raise UsageError(
            f"DYNASPEC_CPU_ISA={asked}: the compiled extension is not in use: {reason}"
        )
    return Extension(None, "torch", f"the compiled extension is not in use: {reason}")


EXTENSION = _load()
_warned = False


def backend(device: torch.device | str = "cpu") -> str:
    """What runs the ops for tensors of a device: "cpu-avx512_bf16", "cpu-avx512", "cpu-avx2",
    "cpu-scalar", "cuda", or "torch" (the PyTorch fallback)."""
    if torch.device(device).type == "cpu":
        return EXTENSION.name
    return "cuda" if torch.device(device).type == "cuda" and EXTENSION.has_cuda else "torch"


def backend_reason(device: torch.device | str = "cpu") -> str:
    """Why ``backend(device)`` is what it is, in words."""
    kind = torch.device(device).type
    if EXTENSION.module is None or kind == "cpu":
        return EXTENSION.reason
    if backend(device) == "torch":
        hint = f"; to build them, run {REBUILD_CUDA}"
        return f"the extension has no kernels for {kind}{hint if kind == 'cuda' else ''}"
    return f"CUDA kernels, built with torch {EXTENSION.module.torch_version()}"


def compiled(x: Tensor) -> bool:
    """Do compiled kernels exist for the device of ``x``? Warns once where they do not."""
    if EXTENSION.module is not None and (
        x.device.type == "cpu" or (x.is_cuda and EXTENSION.has_cuda)
    ):
        return True
    global _warned
    if not _warned:
        _warned = True
        why = backend_reason(x.device)
        message = f"dynaspec runs its PyTorch fallback, several times slower: {why}"
        warnings.warn(message, stacklevel=3)
    return False
