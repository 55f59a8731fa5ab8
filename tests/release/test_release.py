"""What a release consists of: one version, files that are shipped, workflows that call what is
there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import dynaspec_cli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_has_its_changes() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == dynaspec_cli.__version__
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "dynaspec_cli.__version__"
    }


def test_the_pythons_are_the_ones_that_are_tested() -> None:
    named = {
        line.rpartition(" ")[2]
        for line in PROJECT["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d+$", line)
    }
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["tests"]
    assert set(matrix["strategy"]["matrix"]["python"]) == named
    assert len(matrix["strategy"]["matrix"]["torch"]) >= 2
    wheels = {f"3.{b[3:5]}" for b in PROJECT["tool"]["cibuildwheel"]["build"]}
    assert wheels == named


def runs(workflow: Path) -> list[str]:
    data: dict[str, Any] = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    return [s["run"] for job in data["jobs"].values() for s in job["steps"] if "run" in s]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_is_there(workflow: Path) -> None:
    makefiles = "\n".join((ROOT / name).read_text() for name in ("Makefile", "cuda.mk"))
    commands = runs(workflow)
    assert commands
    for command in commands:
        for target in re.findall(r"(?:^|&& )make ([a-z-]+)", command):
            assert re.search(rf"^{target}:", makefiles, re.M), target
        for path in re.findall(r"(?:^| )((?:\.ci|tests|tools|benchmarks)/[\w./-]*)", command):
            assert (ROOT / path).exists(), path


def test_pre_commit_calls_what_make_check_calls() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == ["make check"]
    shown = subprocess.run(
        ["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for tool in ("ruff check .", "ruff format --check .", "mypy", "clang-format", "wrap_docs.py"):
        assert tool in shown


@pytest.mark.parametrize("script", [".ci/run", ".ci/build", ".ci/wheel"])
def test_scripts_parse_and_may_be_run(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", path], check=True)


def test_every_file_that_the_package_reads_is_shipped() -> None:
    """Data beside the code: what the wheel's patterns and the sdist's rules leave out is missing
    for who installs them."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["dynaspec_cli"]
    package = ROOT / "dynaspec_cli"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    listed = subprocess.run(
        ["git", "ls-files", "dynaspec_cli"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        path = ROOT / name
        assert path.suffix == ".py" or path in shipped, name
