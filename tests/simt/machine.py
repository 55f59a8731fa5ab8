"""Compiles the CUDA kernel sources for the SIMT machine, calls their launchers on numpy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
FLAGS = ["-O1", "-g0", "-std=c++20", "-fPIC", "-Wall", "-Wno-unused-function", "-DDYNASPEC_SIMT=1"]
# Compile-time instrumentation only: the run-time half is recorder.cpp. Loops are left to touch
# memory one element at a time, so that a granule's owner is known.
TRACED = ["-fsanitize=thread", "-fno-tree-loop-distribute-patterns", "-fno-tree-vectorize"]

_HEADERS = [(HERE, "*.h"), (HERE / "include", "*.h"), (KERNELS, "*.cuh"), (KERNELS, "launch.h")]

FLOAT32, BFLOAT16, FLOAT16, INT8 = range(4)


def find_compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def build(folder: Path, sources: list[Path] | None = None) -> Path:
    """Shared library of all kernel sources (or the given ones) on the SIMT machine, cached by
    content in ``folder``."""
    compiler = find_compiler()
    assert compiler is not None
    units = sorted(KERNELS.glob("*.cu")) if sources is None else sources
    machine = [HERE / "simt.cpp", HERE / "recorder.cpp"]
    headers = [p for f, g in _HEADERS for p in f.glob(g)]
    shared = hashlib.sha256(" ".join([compiler, *FLAGS, *TRACED]).encode())
    for path in sorted(headers):
        shared.update(path.name.encode() + path.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(path: Path) -> Path:
        """Object file of one source, cached by its content and that of all headers."""
        digest = shared.copy()
        digest.update(path.name.encode() + path.read_bytes())
        out = folder / f"{path.stem}-{digest.hexdigest()[:16]}.o"
        if out.exists():
            return out
        traced = TRACED if path in units else ["-O2"]
        include = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{KERNELS}"]
        partial = out.with_suffix(f".{os.getpid()}")
        command = [compiler, *FLAGS, *traced, *include, "-x", "c++", "-c", str(path)]
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        assert done.returncode == 0, f"{path.name} does not compile here:\n{done.stderr[-4000:]}"
        partial.replace(out)
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*units, *machine]))
    name = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:16]
    library = folder / f"simt-{name}.so"
    if not library.exists():
        # The objects are instrumented, but the sanitizer's own library is not linked.
        partial = library.with_suffix(f".{os.getpid()}")
        link = [compiler, "-shared", "-o", str(partial), *map(str, objects)]
        done = subprocess.run(link, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        partial.replace(library)
    return library


def build_bindings(folder: Path, kernels: Path) -> Path:
    """Library of ``torch.ops.dynaspec_simt``: the CUDA bindings over ``kernels``, see
    bindings.cpp."""
    import torch

    compiler = find_compiler()
    assert compiler is not None
    csrc, site = KERNELS.parent, Path(torch.__file__).parent
    includes = [HERE / "include", csrc, site / "include"]
    command = [compiler, "-shared", "-fPIC", "-O1", "-std=c++20", "-Wall", "-fvisibility=hidden"]
    command += ["-DUSE_CUDA=1", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [*(f"-I{path}" for path in includes), str(HERE / "bindings.cpp"), str(kernels)]
    command += [f"-L{site / 'lib'}", "-ltorch_cpu"]
    library = folder / "bindings.so"
    done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


class Buffer:
    """Device memory: an array between guard zones, known to the access checks."""

    def __init__(
        self, array: np.ndarray, constant: bool, poison: bool, name: str, align: int = 256
    ) -> None:
        self.bytes = array.nbytes
        self._storage = np.full(array.nbytes + 2 * align + 512, 0xA5, np.uint8)
        start = -self._storage.ctypes.data % align + align
        self.array = (
            self._storage[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        )
        self.array[...] = array
        self.constant, self.poison, self.name = constant, poison, name

    @property
    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.array.ctypes.data)


class Machine:
    """One run: register inputs, outputs and workspaces, then call launchers."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.simt_errors.restype = ctypes.c_char_p
        self.library.simt_events.restype = ctypes.c_char_p
        self.buffers: list[Buffer] = []

    def reset(self, seed: int = 1) -> None:
        self.buffers.clear()
        self.library.simt_reset(ctypes.c_uint64(seed))

    def _register(
        self, array: np.ndarray, constant: bool, poison: bool, name: str, granule: int
    ) -> Buffer:
        buffer = Buffer(np.ascontiguousarray(array), constant, poison, name)
        self.library.simt_region(
            buffer.pointer,
            ctypes.c_size_t(buffer.bytes),
            ctypes.c_size_t(granule),
            ctypes.c_int(constant),
            ctypes.c_int(poison),
            name.encode(),
        )
        self.buffers.append(buffer)
        return buffer

    def constant(self, array: np.ndarray, name: str = "input") -> ctypes.c_void_p:
        return self._register(array, True, False, name, 1).pointer

    def mutable(self, array: np.ndarray, name: str = "cache") -> Buffer:
        return self._register(array, False, False, name, max(array.itemsize, 1))

    def output(self, shape: tuple[int, ...], dtype: type, name: str = "output") -> Buffer:
        array = np.zeros(shape, dtype)
        return self._register(array, False, True, name, array.itemsize)

    def workspace(self, size: int) -> ctypes.c_void_p:
        return self._register(np.zeros(max(size, 1), np.uint8), False, True, "workspace", 1).pointer

    def size(self, function: str, *arguments: object) -> int:
        call = getattr(self.library, function)
        call.restype = ctypes.c_int64
        return int(call(*map(_argument, arguments)))

    def launch(self, function: str, *arguments: object) -> int:
        """Runs a launcher, fails on findings of the access checks, returns the status."""
        call = getattr(self.library, function)
        call.restype = ctypes.c_int
        status = int(call(*map(_argument, arguments)))
        findings = self.library.simt_errors().decode()
        assert not findings, f"{function}:\n{findings}"
        return status

    def findings(self) -> str:
        return str(self.library.simt_errors().decode())

    def events(self) -> str:
        return str(self.library.simt_events().decode())


def _argument(value: object) -> object:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Buffer):
        return value.pointer
    if isinstance(value, (bool, int, np.integer)):
        return ctypes.c_int64(int(value))
    if isinstance(value, float):
        return ctypes.c_float(value)
    return value
