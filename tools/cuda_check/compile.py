"""Compiles every CUDA kernel file for all targets and checks the compiler's resource report.

    python tools/cuda_check/compile.py [--jobs 2] [--out build/cuda-check] [FILE.cu ...]

Fails on a compile error, on a register spill, on more than 255 registers, and where a kernel's
static shared memory exceeds 48 KiB. Without nvcc it says so and exits with 0. No PyTorch is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cuda"
TARGETS = (80, 86, 89, 90, 100, 120)

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w?'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


@dataclass
class Resources:
    """What one kernel needs on one target."""

    file: str
    kernel: str
    target: int
    registers: int = -1
    stack_bytes: int = -1
    spill_bytes: int = -1
    static_shared_bytes: int = 0

    def fault(self) -> str:
        where = f"{self.file}: {self.kernel} on sm_{self.target}"
        if min(self.registers, self.stack_bytes, self.spill_bytes) < 0:
            return f"{where}: the compiler's resource report is incomplete"
        if self.spill_bytes:
            return f"{where}: spills {self.spill_bytes} bytes of registers"
        if self.registers > 255:
            return f"{where}: {self.registers} registers"
        if self.static_shared_bytes > 48 * 1024:
            return f"{where}: {self.static_shared_bytes} bytes of static shared memory"
        return ""


def parse_report(file: str, text: str) -> list[Resources]:
    """The `-Xptxas -v` output of one file: one entry per kernel and target."""
    found: list[Resources] = []
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            found.append(Resources(file, match[1], int(match[2])))
        elif found and (match := _STACK.search(line)):
            found[-1].stack_bytes, found[-1].spill_bytes = (
                int(match[1]),
                int(match[2]) + int(match[3]),
            )
        elif found and (match := _USED.search(line)):
            found[-1].registers, found[-1].static_shared_bytes = int(match[1]), int(match[2] or 0)
    return found


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def host_compiler() -> list[str]:
    """nvcc 13 knows host compilers up to its own list; g++ 12 is on it."""
    path = os.environ.get("CUDAHOSTCXX") or shutil.which("g++-12")
    return ["-ccbin", path] if path else []


def compile_file(nvcc: str, source: Path, out: Path) -> tuple[str, int, str, float]:
    command = [
        nvcc,
        "-c",
        "-O3",
        "-std=c++20",
        *host_compiler(),
        "-Xptxas",
        "-v",
        "-I",
        str(KERNELS),
    ]
    for target in TARGETS:
        command += ["-gencode", f"arch=compute_{target},code=sm_{target}"]
    command += ["-o", str(out / f"{source.stem}.o"), str(source)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    return source.name, done.returncode, done.stdout + done.stderr, time.perf_counter() - start


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True).stdout
    short = [
        re.sub(r"\(anonymous namespace\)::|dynaspec::cuda::|^void ", "", line)
        for line in text.splitlines()
    ]
    return [line.split("(", 1)[0] for line in short]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cuda-check")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print(
            "cuda-check: no nvcc on this machine; the CUDA kernels are not compiled here (skipped)"
        )
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    files = options.files or sorted(KERNELS.glob("*.cu"))
    if not files:
        print(f"cuda-check: no kernel files under {KERNELS}")
        return 1
    resources: list[Resources] = []
    faults: list[str] = []
    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        for name, status, text, seconds in pool.map(
            lambda f: compile_file(nvcc, f, options.out), files
        ):
            here = parse_report(name, text)
            resources += here
            print(f"{name}: {len(here)} kernel builds, {seconds:.0f} s", flush=True)
            if status != 0:
                faults.append(f"{name}: nvcc failed\n{text[-3000:]}")
                continue
            missing = set(TARGETS) - {r.target for r in here}
            if missing:
                faults.append(
                    f"{name}: no resource report for sm_{', sm_'.join(map(str, sorted(missing)))}"
                )
    for entry, kernel in zip(resources, demangle([r.kernel for r in resources]), strict=True):
        entry.kernel = kernel
    faults += [fault for r in resources if (fault := r.fault())]
    print(f"\n{'kernel':64} {'registers per target ' + str(list(TARGETS)):>44} {'stack':>6}")
    for key in dict.fromkeys((r.file, r.kernel) for r in resources):
        rows = {r.target: r for r in resources if (r.file, r.kernel) == key}
        registers = " ".join(f"{rows[t].registers:4d}" if t in rows else "   -" for t in TARGETS)
        print(f"{key[1][:64]:64} {registers:>44} {max(r.stack_bytes for r in rows.values()):6d}")
    (options.out / "resources.json").write_text(
        json.dumps([asdict(r) for r in resources], indent=1) + "\n"
    )
    for fault in faults:
        print(f"cuda-check: {fault}", file=sys.stderr)
    if not faults:
        print(
            f"\ncuda-check: {len(files)} files, {len(resources)} kernel builds for {len(TARGETS)} "
            "targets, no spills"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
