"""Options from a TOML file and from the environment: precedence, kinds, unknown keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import FakeEngine


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_file_environment_flag(
    run: Callable[..., Any], engine: FakeEngine, config: Callable[[str], str]
) -> None:
    path = config("[generate]\nmax-new-tokens = 10\ntemperature = 0.5\ntop-k = 3\n")
    env = {"DYNASPEC_TEMPERATURE": "0.7", "DYNASPEC_TOP_K": "4"}
    result = run("generate", "x", "--config", path, "--top-k", "5", **env)
    assert result.exit_code == 0, result.stderr
    assert engine.config.max_new_tokens == 10  # file
    assert engine.config.sampling.temperature == 0.7  # environment over file
    assert engine.config.sampling.top_k == 5  # flag over both


def test_top_level_and_table(
    run: Callable[..., Any], engine: FakeEngine, config: Callable[[str], str]
) -> None:
    path = config(
        'model = "a"\nthreads = 3\nseed = 7\n'
        '[generate]\nmodel = "b"\nstop = ["x y", "z"]\nstream = false\ntree_size = 9\n'
        '[bench]\nlimit = 1\n["train-drafter"]\nsteps = 2\n'
    )
    assert run("generate", "x", DYNASPEC_CONFIG=path).exit_code == 0
    assert (engine.loaded["model"], engine.loaded["threads"]) == ("b", 3)
    assert engine.config.stop == ("x y", "z")
    assert engine.config.tree.size == 9
    assert engine.config.sampling.seed == 7


def test_flags_from_the_file(run: Callable[..., Any], config: Callable[[str], str]) -> None:
    result = run("generate", "x", "--config", config("json = true\nquiet = true\n"))
    assert result.stdout.startswith("{")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("temperature = 1.0", "unknown key 'temperature'"),  # not common: belongs in [generate]
        ("[generate]\ncolour = 1", "unknown key 'colour' in [generate]"),
        ("[generate]\nconfig = 'x'", "unknown key 'config'"),
        ("[nonsense]\na = 1", "unknown table [nonsense]"),
        ("[generate]\ntop-k = 1\ntop_k = 2", "stands twice"),
        ("[generate]\ntop-k = 2.5", "'2.5' is not a valid int"),
        ("[generate]\ntemperature = 'hot'", "'hot' is not a valid float"),
        ("[generate]\ntemperature = true", "expected a text or a number, got True"),
        ("[generate]\nchat = 1", "expected true or false, got 1"),
        ("[generate]\ntree = 'oak'", "expected a tree of"),
        ("[generate]\ntemperature = nan", "--temperature: expected a finite number"),
        ("[generate\n", "no valid TOML"),
    ],
)
def test_mistakes_in_the_file(
    run: Callable[..., Any], config: Callable[[str], str], text: str, message: str
) -> None:
    result = run("generate", "x", "--config", config(text))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_and_binary_files(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("generate", "x", "--config", str(tmp_path / "none.toml"))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "cannot be read" in result.stderr
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    result = run("generate", "x", "--config", str(tmp_path / "binary.toml"))
    assert result.exit_code == 2
    assert "UTF-8" in result.stderr


def test_a_stop_text_from_the_environment_is_not_split(
    run: Callable[..., Any], engine: FakeEngine
) -> None:
    assert run("generate", "x", DYNASPEC_STOP="two words").exit_code == 0
    assert engine.config.stop == ("two words",)


def test_json_from_the_environment(run: Callable[..., Any]) -> None:
    assert run("generate", "x", DYNASPEC_JSON="1").stdout.startswith("{")


@pytest.mark.parametrize("table", ["build-clusters", "build_clusters"])
def test_tables_of_commands_with_a_dash(
    run: Callable[..., Any], config: Callable[[str], str], table: str
) -> None:
    path = config(f"[{table}]\nclusters = 'many'\n")
    result = run("build-clusters", "--config", path, "--corpus", "x", "--out", "y")
    assert result.exit_code == 2
    assert "'many' is not a valid int" in result.stderr
