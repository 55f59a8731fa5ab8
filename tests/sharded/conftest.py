"""torchrun with the package under test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dynaspec_cli

PACKAGE = str(Path(dynaspec_cli.__file__).parents[1])
"""Where the package under test lies: a checkout beside it may hold another."""


@pytest.fixture
def torchrun() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``torchrun(2, "-m", "dynaspec_cli", "generate", ...)``, started; what is left of it ends with
    the test."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int, *arguments: Any, **env: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DYNASPEC_")}
        environment |= {"PYTHONPATH": PACKAGE, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        process = subprocess.Popen(
            [*launcher, "--nproc-per-node", str(count), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**environment, **env},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
