"""Examples of packages that add parts: installed into a folder, and run from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install(example: str, work: Path) -> Path:
    """The folder that ``examples/EXAMPLE`` is installed into."""
    shutil.copytree(ROOT / "examples" / example, work / "source")  # a build leaves files there
    target = work / "site"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--disable-pip-version-check", "--target", target,
            work / "source",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return target


def python(installed: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """A Python process that sees this tree and what is ``installed``."""
    path = os.pathsep.join(map(str, (installed, ROOT, *sys.path[1:])))
    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
