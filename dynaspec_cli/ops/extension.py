"""Loads the compiled extension ``dynaspec_cli._C`` once, and says what is in use and why.

An extension holds the C++ interface of the torch release it was built against; loading it into
another one crashes at best. The record that the build left beside it is therefore read first.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from dataclasses import dataclass
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


def torch_mismatch(built: str, running: str) -> str:
    """Why an extension built against torch ``built`` cannot be loaded into ``running``; empty if
    it can.

    The C++ interface is that of the release: 2.13.0+cpu and 2.13.0+cu130 share it, 2.13.0 and
    2.13.1 need not.
    """
    if built.split("+")[0] == running.split("+")[0]:
        return ""
    return f"it was built against torch {built} and this is torch {running}; {_REBUILD}"


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
        reason = torch_mismatch(str(record.get("torch")), torch.__version__)
        if record.get("cuda") and record["cuda"] != torch.version.cuda:
            built, here = record["cuda"], torch.version.cuda
            reason = f"it was built for CUDA {built} and this torch has {here}; {_REBUILD}"
        if not reason:
            try:
                module = importlib.import_module("dynaspec_cli._C")
                isa = module.isa()
            except ImportError as error:
                reason = f"it does not load ({str(error).splitlines()[0]}); {_REBUILD}"
            except RuntimeError as error:
                raise UsageError(str(error)) from None
            else:
                why = (
                    f"DYNASPEC_CPU_ISA={asked}"
                    if asked
                    else f"the best of {module.available_isas()}"
                )
                kinds = "CPU and CUDA kernels" if module.has_cuda() else "CPU kernels"
                built_for = f"built for torch {record['torch']}"
                return Extension(module, f"cpu-{isa}", f"{kinds}, {built_for}, {why}")
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
    return f"CUDA kernels, built for torch {EXTENSION.module.torch_version()}"


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
