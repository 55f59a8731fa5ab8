"""Printed advice names what exists: extras of this package, in one form, from one place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from dynaspec_cli.installing import EXTRAS, extra

ROOT = Path(__file__).parents[2]


def test_the_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"])
    for name in EXTRAS:
        command = f"pip install --no-build-isolation '.[{name}]'"
        assert extra(name) == f"{command} in a checkout of dynaspec"
    with pytest.raises(ValueError, match="expected one of demo"):
        extra("all")


def test_nobody_tells_to_install_what_is_not_published() -> None:
    places = [*(ROOT / "dynaspec_cli").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    for path in [*places, ROOT / "README.md", ROOT / "setup.py"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install ['\"]?dynaspec\b", text), path
