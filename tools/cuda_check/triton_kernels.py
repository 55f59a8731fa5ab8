"""Compiles the Triton kernels without a GPU and lists what they take of one.

    python tools/cuda_check/triton_kernels.py [PART OF A KERNEL'S NAME]

Each kernel is compiled for sm_80, 90 and 120 with the shapes of a Llama-3-8B draft round and of
passes of Llama-3-8B and Gemma 3 4B; a spill fails. It needs Triton (part of PyTorch's CUDA builds;
else pip install triton).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dynaspec_cli.device.kernels import triton_attention, triton_head

ARCHITECTURES = (80, 90, 120)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WARP = 32


@dataclass(frozen=True)
class Case:
    """A kernel with the types of its arguments, its constants and its warps."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, int | bool]
    warps: int
    stages: int = 3


def head_cases() -> list[Case]:
    found = []
    for dtype in ("bf16", "fp32"):
        for wide in (16, 32):
            shapes = {"D": 4096, "K": 10, "KP": 16, "W": wide, "TILE_": triton_head.TILE}
            shapes |= {"BLOCK": triton_head.block_of(DTYPES[dtype]), "PROGRAMS_": 264}
            signature = {
                "hidden": f"*{dtype}",
                "weight": f"*{dtype}",
                "rows": "*i64",
                "count": "*i64",
                "values": "*fp32",
                "value_places": "*i32",
                "parts": "*fp32",
                "w": "i32",
                "temperature": "fp32",
            }
            name = f"head_topk scan {dtype}, {wide} rows"
            found.append(
                Case(name, triton_head._scan, signature, shapes, triton_head.warps_of(wide))
            )
    shapes = {"K": 10, "KP": 16, "W": 16, "PROGRAMS_": 264, "PADDED": 512}
    names = ("values", "value_places", "parts", "log_q", "places")
    kinds = ("*fp32", "*i32", "*fp32", "*fp32", "*i64")
    signature = dict(zip(names, kinds, strict=True))
    return [*found, Case("head_topk join", triton_head._join, signature, shapes, 8)]


def attention_cases() -> list[Case]:
    found = []
    models = [(32, 4, 128, cells, False) for cells in (16, 32, 244)] + [(32, 4, 128, 244, True)]
    models += [(8, 2, 256, 128, windowed) for windowed in (False, True)]
    for dtype in ("bf16", "fp32"):
        for heads, group, size, cells, windowed in models:
            given = (cells, DTYPES[dtype], windowed, size)
            rows, step, warps, stages = triton_attention.shape_of(*given)
            if dtype == "fp32" and cells == 32:
                continue  # the same kernel
            shapes: dict[str, int | bool] = {"HEADS": heads, "GROUP": group}
            shapes |= {"SIZE": size, "PADDED": size, "ROWS": rows, "KEYS_": step}
            shapes |= {"SPLITS_": triton_attention.SPLITS, "CAPPED": windowed, "WINDOWED": windowed}
            signature = {
                "q": "*fp32",
                "keys": f"*{dtype}",
                "values": f"*{dtype}",
                "length": "*i64",
                "depth": "*i64",
                "ancestors": "*i64",
                "sums": "*fp32",
                "stats": "*fp32",
                "n": "i32",
                "t": "i32",
                "scale": "fp32",
                "softcap": "fp32",
                "window": "i32",
            }
            what = ", heads of 256" if size == 256 else ""
            what += ", window and softcap" if windowed else ""
            name = f"tree_attention {dtype}, tiles of {rows}{what}"
            found.append(Case(name, triton_attention._attend, signature, shapes, warps, stages))
    signature = {"sums": "*fp32", "stats": "*fp32", "out": "*fp32", "cells": "i32"}
    for size, splits in ((128, 8), (128, 16), (128, 32), (256, 32)):
        shapes = {"SIZE": size, "PADDED": size, "SPLITS_": splits}
        warps = triton_attention.join_warps(splits, size)
        name = f"tree_attention join, {splits} splits of {size}"
        found.append(Case(name, triton_attention._join, signature, shapes, warps))
    return found


def usage(cubin: bytes) -> tuple[int, int, int]:
    """(registers, stack bytes, local bytes) of the only kernel in ``cubin``: spills lie in both."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    numbers = [re.search(rf"{key}:(\d+)", said) for key in ("REG", "STACK", "LOCAL")]
    if any(number is None for number in numbers):
        raise SystemExit(f"triton-check: cuobjdump says no resource usage: {said.strip()!r}")
    registers, stack, local = (int(number[1]) for number in numbers if number)
    return registers, stack, local


def compiled(case: Case, architecture: int) -> tuple[int, int, int, int]:
    """(registers, stack, local, shared memory) of a case on an architecture."""
    types = dict(case.signature) | dict.fromkeys(case.constants, "constexpr")
    constants: dict[Any, Any] = dict(case.constants)
    source = ASTSource(case.kernel, types, constants)
    target = GPUTarget("cuda", architecture, WARP)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    made = triton.compile(source, target=target, options=options)
    return *usage(made.asm["cubin"]), made.metadata.shared


def main() -> int:
    spilled = 0
    print(f"triton {triton.__version__}")
    print("| kernel | sm | registers | spilled bytes | shared bytes |")
    print("|---|---|---|---|---|")
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for case in (*head_cases(), *attention_cases()):
        if wanted not in case.name:
            continue
        for architecture in ARCHITECTURES:
            registers, stack, local, shared = compiled(case, architecture)
            spilled += stack + local > 0
            row = (case.name, architecture, registers, stack + local, shared)
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    if spilled:
        print(f"triton-check: {spilled} kernels spill", file=sys.stderr)
    return 1 if spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
