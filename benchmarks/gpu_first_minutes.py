"""The first minutes on a GPU: what has to be known before anything else is done there.

    python benchmarks/gpu_first_minutes.py [--out FILE.json] [--stage NAME ...]

Stages run one after another, each in a process of its own with its own limit; a stage that fails or
takes too long does not stop the others. One line a stage, and a JSON file that is written after
each. Under 8 minutes in all; the first five stages, which say whether the kernels work and what a
step takes, under 5. Weights are random and made on the device: no file but the repository's is
read, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TOTAL_S, FIRST_HALF_S = 480, 300


class Stage(NamedTuple):
    """``command`` None: a function of gpu_stages.py; ``first``: in the first half."""

    name: str
    limit_s: int
    command: tuple[str, ...] | None = None
    first: bool = False


PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-m", "cuda", "-p", "no:cacheprovider")
STAGES = (
    Stage("facts", 20, first=True),
    Stage("build", 95, (sys.executable, "setup.py", "-q", "build_ext", "--inplace"), first=True),
    Stage("tests", 75, (*PYTEST, "tests/cuda"), first=True),
    Stage("kernels", 45, first=True),
    Stage("passes", 60, first=True),
    Stage("whole", 55),
    Stage("transformers", 45),
    Stage("sanitizer", 45, ("compute-sanitizer", *PYTEST, "tests/cuda/test_cuda_head.py")),
    Stage("compiled", 40),
)


def run_stage(stage: Stage, limit_s: float) -> dict[str, Any]:
    """{"stage", "ok", "seconds", and "facts" or "why"}."""
    command = stage.command or (sys.executable, __file__, "--inside", stage.name)
    begun = time.perf_counter()
    out: dict[str, Any] = {"stage": stage.name, "ok": False}
    if shutil.which(command[0]) is None:
        return out | {"seconds": 0.0, "why": f"skipped: {command[0]} is not installed"}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DYNASPEC_BUILD": "cuda"}
    environment["PYTHONPATH"] = str(ROOT)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return out | {"seconds": round(limit_s, 1), "why": f"stopped after {limit_s:.0f} s"}
    out["seconds"] = round(time.perf_counter() - begun, 1)
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    if done.returncode:
        return out | {"why": lines[-1], "output": lines[-30:]}
    printed = (done.stdout.strip().splitlines() or [""])[-1]
    found = json.loads(printed) if stage.command is None else {"last_line": printed}
    return out | {"ok": True, "facts": found}


def inside(name: str) -> int:
    """A stage in its own process: facts as the last line of stdout."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    import gpu_stages

    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    print(json.dumps(gpu_stages.STAGES[name](gpu_stages.Setting(device))))
    return 0


def run(stages: tuple[Stage, ...], out: Path | None, total_s: float = TOTAL_S) -> bool:
    """Run the stages that still have time; True where all went well."""
    begun, results = time.perf_counter(), []
    for stage in stages:
        left = total_s - (time.perf_counter() - begun)
        if left < 1:
            results.append({"stage": stage.name, "ok": False, "why": "no time was left"})
        else:
            results.append(run_stage(stage, min(stage.limit_s, left)))
        last = results[-1]
        said = json.dumps(last["facts"]) if last["ok"] else last["why"]
        mark = "ok  " if last["ok"] else "FAIL"
        print(f"{mark} {stage.name:12} {last.get('seconds', 0.0):6.1f} s  {said}", flush=True)
        if out is not None:
            text = json.dumps({"schema": 1, "stages": results}, indent=1)
            out.with_suffix(".tmp").write_text(text + "\n", encoding="utf-8")
            out.with_suffix(".tmp").replace(out)
    return all(result["ok"] for result in results)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", action="append", choices=[stage.name for stage in STAGES])
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        return inside(options.inside)
    chosen = tuple(s for s in STAGES if not options.stage or s.name in options.stage)
    return 0 if run(chosen, options.out) else 1


if __name__ == "__main__":
    raise SystemExit(main())
