"""The examples run: the Python one on a tiny model, the shell ones at least parse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_python_api(tiny_model_dir):
    run = subprocess.run(
        [sys.executable, EXAMPLES / "python_api.py", tiny_model_dir, "none"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tokens/s, tau 1.00" in run.stdout
    assert "no drafter" in run.stderr


@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.glob("*.sh")))
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", EXAMPLES / script], check=True)
