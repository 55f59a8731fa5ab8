"""What ``from dynaspec_cli import ...`` gives, and that it costs nothing before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dynaspec_cli

ROOT = Path(__file__).parents[2]
CONTRACT = {
    "Engine",
    "GenerationConfig",
    "SamplingConfig",
    "ShortlistConfig",
    "TreeConfig",
    "DynaSpecError",
}


def test_names_of_the_contract() -> None:
    assert set(dynaspec_cli.__all__) >= CONTRACT
    assert set(dynaspec_cli.__all__) == set(dynaspec_cli._PLACES)
    for name in dynaspec_cli.__all__:
        value = getattr(dynaspec_cli, name)
        assert value.__name__ == name
        assert value.__doc__, f"{name} has no docstring"
        assert name in dir(dynaspec_cli)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Motor'"):
        _ = dynaspec_cli.Motor
    with pytest.raises(ImportError, match="cannot import name 'Motor'"):
        from dynaspec_cli import Motor  # noqa: F401


@pytest.mark.parametrize(
    ("code", "torch"),
    [
        ("import dynaspec_cli", False),
        ("from dynaspec_cli import GenerationConfig as C; C(max_new_tokens=3)", False),
        ("from dynaspec_cli import TreeConfig, ShortlistConfig, DynaSpecError", False),
        ("from dynaspec_cli import TokensEvent, GenerationResult", False),
        ("from dynaspec_cli import Engine", True),
    ],
)
def test_torch_is_imported_with_the_engine_alone(code: str, torch: bool) -> None:
    check = f"{code}; import sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == str(torch)


def test_the_example_uses_nothing_else() -> None:
    tree = ast.parse((ROOT / "examples" / "python_api.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    assert modules == {"__future__", "sys", "dynaspec_cli"}
