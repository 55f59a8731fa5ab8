"""Builds the compiled ops. Everything static is in pyproject.toml.

dynaspec_cli._ops   the ops: a library on PyTorch's stable interface, without Python. One build
                    loads into every torch from TORCH_FROM on
dynaspec_cli._C     what the build can do (pybind11): it depends on Python's version, not on torch's

DYNASPEC_BUILD=auto   (default) CPU kernels, and CUDA kernels where torch is a CUDA build and there
                      is a toolkit; a missing compiler or a failing compile prints one line and
                      installs without an extension
DYNASPEC_BUILD=cpu    CPU kernels; a failure fails the install
DYNASPEC_BUILD=cuda   CPU and CUDA kernels; a failure fails the install
DYNASPEC_BUILD=0      no extension
DYNASPEC_CUDA_ARCHS   e.g. "8.0;9.0" (default: all supported ones, the newest also as PTX)
DYNASPEC_SANITIZE=1   AddressSanitizer and UBSan (see `make sanitize`)
MAX_JOBS              parallel compilers (default: by cores and free memory)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext as plain_build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "dynaspec_cli"
INFO_NAME = "_build_info.json"
MODE = os.environ.get("DYNASPEC_BUILD", "auto").strip().lower() or "auto"
CUDA_ARCHS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
CUDA_ARCHS_BEFORE_12_8 = "8.0;8.6;8.9;9.0+PTX"
GIB_PER_JOB = 2
TORCH_FROM = (2, 10)  # oldest torch that a build loads into; pyproject.toml has it too


def say(message: str) -> None:
    print(f"dynaspec: {message}", file=sys.stderr, flush=True)


def choose_jobs() -> int:
    """As many compilers as there are cores, and no more than free memory carries."""
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        jobs = min(jobs, free_kib // (GIB_PER_JOB << 20))
    except (OSError, StopIteration):
        pass
    return max(jobs, 1)


def find_compiler() -> str | None:
    named = os.environ.get("CXX")
    for name in [named.split()[0]] if named else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    return None


def sources(*folders: str, suffixes: tuple[str, ...] = (".cpp",)) -> list[str]:
    found: list[Path] = []
    for folder in folders:
        for suffix in suffixes:
            found += (ROOT / "csrc" / folder).glob(f"*{suffix}")
    return sorted(str(path.relative_to(ROOT)) for path in found)


def cpu_flags() -> list[str]:
    # -ffp-contract=off: a multiplication and an addition are fused only where the source says so,
    # so that every tile shape rounds alike.
    flags = ["-O3", "-g0", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden"]
    flags += ["-Wall"]
    # gcc 12 takes undefined operands of its own AVX-512 intrinsics for uninitialised variables.
    flags += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    if os.environ.get("DYNASPEC_SANITIZE") == "1":
        flags += ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
        flags += ["-fno-sanitize-recover=undefined", "-fno-sanitize=vptr"]
    return flags


def cuda_archs() -> str:
    """DYNASPEC_CUDA_ARCHS; else what TORCH_CUDA_ARCH_LIST, which container images set for
    everything they build, has from 8.0 on (older GPUs lack bf16 tensor cores); else all that the
    toolkit knows."""
    if own := os.environ.get("DYNASPEC_CUDA_ARCHS"):
        return own
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", ";").replace(" ", ";")
    numbers = [arch for arch in listed.split(";") if re.match(r"\d+\.\d", arch)]
    fit = [arch for arch in numbers if int(arch.split(".")[0]) >= 8]
    if fit:
        return ";".join(fit)
    return CUDA_ARCHS if toolkit() >= (12, 8) else CUDA_ARCHS_BEFORE_12_8


def toolkit() -> tuple[int, int]:
    """nvcc's version; the newest known where it does not say."""
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = Path(CUDA_HOME or "") / "bin" / "nvcc"
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 12, 8
    found = re.search(r"release (\d+)\.(\d+)", said.stdout)
    return (int(found[1]), int(found[2])) if found else (12, 8)


def make_extensions(mode: str) -> list[Any]:
    """[the ops, the module that describes them] for "cpu" or "cuda"."""
    from setuptools import Extension
    from torch.utils import cpp_extension

    link = ["-fsanitize=address,undefined"] if os.environ.get("DYNASPEC_SANITIZE") == "1" else []
    include = [str(ROOT / "csrc")]
    macros = [("DYNASPEC_WITH_CUDA", "1")] if mode == "cuda" else []
    ops: dict[str, Any] = {
        "sources": [*sources("cpu/kernels", "cpu/ops"), "csrc/ops.cpp"],
        "include_dirs": list(include),
        "define_macros": [*macros, ("TORCH_TARGET_VERSION", target_version())],
        "extra_compile_args": {"cxx": cpu_flags()},
        "extra_link_args": link,
        "py_limited_api": True,
    }
    if mode == "cuda":
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_archs()
        ops["sources"] += sources("cuda", suffixes=(".cpp", ".cu"))
        ops["include_dirs"] += [
            p for p in os.environ.get("DYNASPEC_CUDA_INCLUDE", "").split(":") if p
        ]
        # USE_CUDA: PyTorch's header then declares the functions on streams.
        ops["define_macros"].append(("USE_CUDA", "1"))
        ops["extra_compile_args"]["nvcc"] = ["-O3", "-std=c++20"]
    make = cpp_extension.CUDAExtension if mode == "cuda" else cpp_extension.CppExtension
    module = Extension(
        f"{PACKAGE}._C",
        ["csrc/module.cpp", "csrc/cpu/kernels/isa.cpp"],
        include_dirs=[*include, *cpp_extension.include_paths()],  # pybind11 comes with torch
        define_macros=macros,
        extra_compile_args={"cxx": cpu_flags()},
        extra_link_args=link,
        language="c++",
    )
    return [make(f"{PACKAGE}._ops", **ops), module]


def target_version() -> str:
    """TORCH_FROM as PyTorch's headers write it: major, minor and six more bytes."""
    major, minor = TORCH_FROM
    return hex(major << 56 | minor << 48)


def replace_build(extension: Any, other: Any) -> None:
    """Let ``extension``, which setuptools has prepared, be built from what ``other`` is."""
    for name in ("sources", "include_dirs", "define_macros", "library_dirs", "libraries"):
        setattr(extension, name, getattr(other, name))
    for name in ("runtime_library_dirs", "extra_compile_args", "extra_link_args", "language"):
        setattr(extension, name, getattr(other, name))


def resolve_mode() -> tuple[str, str]:
    """(what to build: "cpu", "cuda" or "0"; why nothing is built)."""
    if MODE not in ("auto", "cpu", "cuda", "0"):
        raise SystemExit(f"DYNASPEC_BUILD: expected auto, cpu, cuda or 0, got {MODE!r}")
    if MODE == "0":
        return "0", "it was switched off by DYNASPEC_BUILD=0 when dynaspec was installed"
    if find_compiler() is None:
        reason = "no C++ compiler was found when dynaspec was installed"
        if MODE != "auto":
            raise SystemExit(f"DYNASPEC_BUILD={MODE}: {reason}; install g++ or set CXX")
        return "0", reason
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME
    except ImportError as error:
        if MODE != "auto":
            raise SystemExit(f"DYNASPEC_BUILD={MODE}: torch cannot be imported ({error})") from None
        return "0", f"torch could not be imported when dynaspec was installed ({error})"
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH_FROM:
        wanted = ".".join(map(str, TORCH_FROM))
        reason = f"it needs torch {wanted} or newer, and {torch.__version__} was installed"
        if MODE != "auto":
            raise SystemExit(f"DYNASPEC_BUILD={MODE}: {reason}")
        return "0", reason
    if MODE == "cuda" and CUDA_HOME is None:
        raise SystemExit("DYNASPEC_BUILD=cuda: no CUDA toolkit was found; set CUDA_HOME")
    if MODE == "cuda" and torch.version.cuda is None:
        raise SystemExit(f"DYNASPEC_BUILD=cuda: torch {torch.__version__} is a build without CUDA")
    have_cuda = (
        CUDA_HOME is not None
        and (Path(CUDA_HOME) / "bin" / "nvcc").exists()
        and torch.version.cuda is not None
        and sources("cuda", suffixes=(".cu",))
    )
    return ("cuda" if MODE == "cuda" or (MODE == "auto" and have_cuda) else "cpu"), ""


def base_command(mode: str) -> Any:
    if mode == "0":
        return plain_build_ext
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension


mode, reason = resolve_mode()
NOTHING_BUILT = {"built": False, "kind": "0", "reason": reason, "torch": None}
if reason:
    say(f"building without the compiled extension: {reason}; the PyTorch fallback will be used")


def write_record(folder: Path, info: dict[str, Any]) -> None:
    """Leaves what was built, or why nothing was, beside the package, for the loader."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_NAME).write_text(json.dumps(info, indent=1) + "\n")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        folder = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE
        if mode == "0":  # build_ext does not run without extensions
            write_record(folder, NOTHING_BUILT)


class BuildExt(base_command(mode)):  # type: ignore[misc]
    def finalize_options(self) -> None:
        super().finalize_options()
        # Without ninja nothing else would notice a changed header, or another torch.
        self.force = True

    def run(self) -> None:
        inplace = self.inplace  # setuptools forgets it when a build fails
        info = self.build()
        write_record(ROOT / PACKAGE if inplace else Path(self.build_lib) / PACKAGE, info)

    def build(self) -> dict[str, Any]:
        """Build; the record of what came of it."""
        if mode == "0":
            return NOTHING_BUILT
        import torch

        info: dict[str, Any] = {"built": True, "reason": "", "torch": torch.__version__}
        info["torch_from"] = list(TORCH_FROM)
        os.environ.setdefault("MAX_JOBS", str(choose_jobs()))
        inplace, failed = self.inplace, ""
        for kind in ("cuda", "cpu") if mode == "cuda" and MODE == "auto" else (mode,):
            if failed:
                say(f"the CUDA kernels did not compile ({failed}); building those for the CPU")
                self.inplace = inplace
                for extension, other in zip(self.extensions, make_extensions(kind), strict=True):
                    replace_build(extension, other)
            try:
                super().run()
                return info | {"kind": kind, "cuda": torch.version.cuda if kind == "cuda" else None}
            except (Exception, SystemExit) as error:
                if MODE != "auto":
                    raise
                failed = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        say(f"the extension did not compile ({failed}); the PyTorch fallback will be used")
        self.extensions = []
        return info | {"built": False, "kind": mode, "reason": f"its compilation failed ({failed})"}


setup(
    ext_modules=make_extensions(mode) if mode != "0" else [],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
