"""A package that adds a tree: installed, listed, run, and as exact as the trees that are built
in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .installing_packages import ROOT, install, python


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install("tree_package", tmp_path_factory.mktemp("package"))


def test_the_command_line_lists_it(installed: Path) -> None:
    shown = python(installed, "-m", "dynaspec_cli", "generate", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "|auto|comb]" in "".join(shown.stdout.split())
    wrong = python(installed, "-m", "dynaspec_cli", "generate", "x", "--tree", "cmob")
    assert wrong.returncode == 2
    assert "did you mean comb?" in wrong.stderr


def test_it_generates_what_the_target_would(
    installed: Path, tiny_model_dir: Path, tiny_drafter_dir: Path
) -> None:
    done = python(
        installed, "-m", "dynaspec_cli", "generate", "The quick brown", "--model", tiny_model_dir,
        "--drafter", tiny_drafter_dir, "--shortlist", "full", "--tree", "comb", "--dtype",
        "float32", "--tree-size", "8", "--max-new-tokens", "24", "--compare", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["settings"]["tree"] == "comb"
    assert result["identical"]
    assert result["num_draft_tokens"] > 0


def test_the_suites_of_exactness_take_it_in(installed: Path) -> None:
    """They run over the registry, so an installed tree is enumerated like the others."""
    tests = ("test_greedy.py", "test_law.py")
    done = python(
        installed, "-m", "pytest", "-q", "-x", "-k", "comb", "-p", "no:cacheprovider",
        *(ROOT / "tests" / "exactness" / name for name in tests),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
