"""The command group: help, laziness, exit codes, one-line errors, the generated documentation."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from dynaspec_cli import __version__
from dynaspec_cli.commands.registry import COMMANDS
from dynaspec_cli.errors import DynaSpecError, ExactnessError
from dynaspec_cli.main import cli, describe
from dynaspec_cli.shortlist.registry import SHORTLISTS
from dynaspec_cli.tree.registry import TREES

from .conftest import ROOT, FakeEngine
from .help_text import help_document

HEAVY = ("torch", "transformers", "numpy", "rich", "safetensors", "sklearn")


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["nonsense"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from dynaspec_cli.main import cli\n"
        "try:\n"
        f"    cli.main({args!r}, prog_name='dynaspec')\n"
        "finally:\n"
        f"    print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stderr.strip().endswith("[]"), done.stderr


def test_help_lists_every_command(run: Callable[..., Any]) -> None:
    for flag in ("--help", "-h"):
        result = run(flag)
        assert result.exit_code == 0
        for name, entry in COMMANDS.items():
            assert name in result.stdout
            assert entry.summary in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_under_its_name(name: str) -> None:
    command = COMMANDS[name].load()
    assert command.name == name


def test_version(run: Callable[..., Any]) -> None:
    assert run("--version").stdout == f"dynaspec, version {__version__}\n"


def test_choices_come_from_the_registries() -> None:
    params = {p.name: p for p in COMMANDS["generate"].load().params}
    assert tuple(params["tree"].type.choices) == TREES.names()  # type: ignore[attr-defined]
    metavar = params["shortlist"].type.get_metavar(params["shortlist"])
    assert metavar == f"[{'|'.join(SHORTLISTS)}|PATH]"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DynaSpecError("what to do"), 1, "what to do"),
        (ExactnessError("differs"), 3, "differs"),
        (ValueError("first\nsecond"), 1, "Unexpected ValueError: first (run again with --debug"),
        (MemoryError(), 1, "Out of memory"),
        (RuntimeError("[...] DefaultCPUAllocator: can't allocate memory: you"), 1, "Out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "Out of memory"),
        (OSError(errno.ENOSPC, "full", "/cache/x"), 1, "No disk space is left for /cache/x"),
    ],
)
def test_errors_are_one_line(
    run: Callable[..., Any], engine: FakeEngine, error: Exception, code: int, text: str
) -> None:
    engine.load_error = error
    result = run("generate", "x")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    debug = run("generate", "x", "--debug")
    assert debug.exit_code == code
    assert "Traceback" in debug.stderr
    assert debug.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" in run("generate", "x", DYNASPEC_DEBUG="1").stderr


def test_torch_without_memory_is_told_so() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert describe(caught.value)[0].startswith("Out of memory")


def test_interrupt_while_loading(run: Callable[..., Any], engine: FakeEngine) -> None:
    engine.load_error = KeyboardInterrupt()
    assert run("generate", "x").exit_code == 130


@pytest.mark.parametrize(
    "args", [["nonsense"], ["generate", "--nonsense"], ["generate", "a", "b"], ["--nonsense"]]
)
def test_usage_errors_are_one_line(run: Callable[..., Any], args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    assert "--help" in result.stderr


def test_closed_pipe_is_silent(tmp_path: Path) -> None:
    code = (
        "from dynaspec_cli.main import cli\n"
        "import click\n"
        "@cli.command\n"
        "def loud():\n"
        "    while True:\n"
        "        click.echo('line')\n"
        "cli.get_command = lambda ctx, name: loud\n"
        "cli.main(['loud'])\n"
    )
    pipeline = f'"{sys.executable}" -c "$CODE" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", pipeline],
        capture_output=True, text=True, cwd=ROOT, env={"CODE": code, "PATH": "/usr/bin:/bin"},
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_warnings_of_others_are_no_messages_of_ours() -> None:
    code = (
        "import sys, warnings\n"
        "from dynaspec_cli import main\n"
        "import click\n"
        "from dynaspec_cli.commands.options import common_options\n"
        "@click.command\n"
        "@common_options\n"
        "def loud(common):\n"
        "    warnings.warn('somebody else says')\n"
        "    warnings.warn('dynaspec runs its fallback')\n"
        "main.cli.get_command = lambda ctx, name: loud\n"
        "sys.argv = ['dynaspec', 'loud', *sys.argv[1:]]\n"
        "main.main()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    for quiet, shown in (([], "Warning: dynaspec runs its fallback\n"), (["--quiet"], "")):
        done = subprocess.run(
            [sys.executable, "-c", code, *quiet],
            capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
        )  # fmt: skip
        assert done.stderr == shown
        assert done.returncode == 0


def test_documentation_is_current() -> None:
    path = ROOT / "docs" / "guide" / "cli.md"
    assert path.read_text(encoding="utf-8") == help_document(cli), (
        "docs/guide/cli.md is not what --help says; run: python -m tests.cli.help_text"
    )


OPTIONS = [
    pytest.param(option, id=f"{name} {option.opts[0]}")
    for name, entry in COMMANDS.items()
    for option in entry.load().params
    if isinstance(option, click.Option) and not option.is_flag
]
UNITS = (
    "tokens?|nodes?|levels|minutes|steps|threads|prompts?|runs|layers|clusters|times|logits|"
    "probability|rate|number|bytes|seconds"
)


@pytest.mark.parametrize("option", OPTIONS)
def test_help_says_the_default(option: click.Option) -> None:
    """Click prints a default that it knows; of others the text does."""
    assert option.help
    known = option.default is not None and "UNSET" not in repr(option.default)
    assert known or option.required or option.multiple or "[default: " in option.help


@pytest.mark.parametrize("option", OPTIONS)
def test_help_says_the_unit_of_a_number(option: click.Option) -> None:
    if option.type.name in ("integer", "float"):
        assert re.search(rf"\b({UNITS})\b", str(option.help), re.I)
