"""Builds the extension against a CUDA build of PyTorch, imports it, traces the steps, and runs the
decode loop on a pretended GPU.

    DYNASPEC_CUDA_VENV=/path/to/venv python tools/cuda_check/build.py [--archs 9.0+PTX]

The environment holds torch 2.14.1 (CUDA 13.0, 5 GB) and is separate from the one the package is
developed in, whose torch is older: the sources thereby compile against two releases. It is made if
the folder does not exist. The build (DYNASPEC_BUILD=cuda) runs on a copy of the tree under
build/cuda-check/tree, so that no other build is touched. All targets are compiled by compile.py;
one suffices here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from compile import ROOT, find_nvcc, host_compiler

TORCH = "torch==2.14.1"
PACKAGES = [
    TORCH,
    "transformers>=5,<6",
    "safetensors",
    "click",
    "rich",
    "setuptools>=77",
    "ninja",
    "numpy",
    "tokenizers",
    "pytest",
]
FREE_GIB = 8


def say(text: str) -> None:
    print(f"cuda-check: {text}", flush=True)


def prepare(venv: Path) -> Path:
    """Python of the environment, which is made if it is missing."""
    python = venv / "bin" / "python"
    if not python.exists():
        free = shutil.disk_usage(venv.parent if venv.parent.exists() else Path.cwd()).free >> 30
        if free < FREE_GIB:
            raise SystemExit(
                f"cuda-check: {venv} needs {FREE_GIB} GiB of disk, {free} GiB are free; "
                "free some or name another place"
            )
        say(f"making {venv} with {TORCH} (5 GB)")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    probe = "import torch, transformers, safetensors, click, rich, setuptools, ninja, pytest"
    if subprocess.run([str(python), "-c", probe], capture_output=True).returncode != 0:
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def cuda_include(python: Path) -> str:
    """Headers that a toolkit may lack (cuSPARSE, cuBLAS) come with the wheels."""
    code = (
        "import nvidia, pathlib; print(pathlib.Path(list(nvidia.__path__)[0]) / 'cu13' / 'include')"
    )
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def toolkit() -> Path:
    """The toolkit's folder; nvcc itself may be a wrapper that lies elsewhere."""
    named = os.environ.get("CUDA_HOME")
    nvcc = Path(find_nvcc() or "nvcc").resolve()
    for place in (Path(named) if named else None, nvcc.parents[1], Path("/usr/local/cuda")):
        if place is not None and (place / "include" / "crt" / "host_defines.h").exists():
            return place
    raise SystemExit(
        "cuda-check: expected a CUDA toolkit with headers; set CUDA_HOME to its folder"
    )


def copy_tree(to: Path) -> None:
    """The parts that a build and a trace need; files keep their times, so that a second build is
    incremental."""
    to.mkdir(parents=True, exist_ok=True)
    skip = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json", "data")
    for folder in ("csrc", "dynaspec_cli"):
        shutil.rmtree(to / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, to / folder, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, to / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--archs", default="9.0+PTX", help="targets of this build (compile.py checks all of them)"
    )
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    named = os.environ.get("DYNASPEC_CUDA_VENV")
    if find_nvcc() is None:
        say("no nvcc on this machine; the CUDA extension is not built here (skipped)")
        return 0
    if not named:
        say(
            "DYNASPEC_CUDA_VENV is not set; name an environment, or a place to make one of 5 GB "
            "(skipped)"
        )
        return 0
    python, tree = prepare(Path(named)), ROOT / "build" / "cuda-check" / "tree"
    copy_tree(tree)
    env = os.environ | {
        "DYNASPEC_BUILD": "cuda",
        "DYNASPEC_CUDA_ARCHS": options.archs,
        "DYNASPEC_CUDA_INCLUDE": cuda_include(python),
        "CUDA_HOME": str(toolkit()),
        "MAX_JOBS": str(options.jobs),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    if host := host_compiler():
        env |= {"NVCC_PREPEND_FLAGS": " ".join(host), "CXX": host[1], "CC": host[1]}
    start = time.perf_counter()
    done = subprocess.run(
        [str(python), "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        print((done.stdout + done.stderr)[-6000:], file=sys.stderr)
        say("the extension does not build against " + TORCH)
        return 1
    say(
        f"extension built against {TORCH} for {options.archs} in "
        f"{time.perf_counter() - start:.0f} s"
    )
    env["PYTHONPATH"] = str(tree)
    trace = [str(ROOT / "tools" / "cuda_check" / "trace.py")]
    if code := subprocess.run([str(python), *trace], cwd=tree, env=env).returncode:
        return code
    say("the decode loop on a pretended GPU:")
    pretend = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "devices")]
    return subprocess.run([str(python), *pretend], cwd=tree, env=env).returncode


if __name__ == "__main__":
    raise SystemExit(main())
