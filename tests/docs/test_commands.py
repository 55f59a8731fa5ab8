"""What the documentation tells to type: it parses, the files and targets exist, and it runs."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from docs.test_prose import DOCUMENTS, ROOT, name
from dynaspec_cli.commands.registry import COMMANDS
from dynaspec_cli.main import cli

README = ROOT / "README.md"
EXAMPLES = {"comb": "chain", "first": "nanospec", "signs": "int8"}
"""What the packages in examples/ add, and what stands for it here: tests of their own install
them."""

UNPUBLISHED = ("DATA", "rare-tokens", "rare_tokens")
"""Words of commands that need data which is not part of the repository."""

SAYS_SO = re.compile(r"not part of this repository|#suites|is not published|docs/guide/bench", re.S)


PROGRAMS = rf"dynaspec ({'|'.join(COMMANDS)})|pip|make|python|pytest|\.ci|benchmarks|[A-Z]+="


def blocks(path: Path, language: str) -> list[tuple[str, str]]:
    """(the prose around a code block, its content)."""
    parts = re.split(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = []
    for i in range(1, len(parts), 3):
        if parts[i] == language:
            found.append((parts[i - 1][-900:] + parts[i + 2][:900], parts[i + 1]))
    return found


def commands(path: Path) -> list[tuple[str, str]]:
    """(the prose around it, a command with its continued lines joined)."""
    found = []
    for around, block in [*blocks(path, ""), *blocks(path, "bash")]:
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(rf"(echo .*\| )?({PROGRAMS})", line):
                found.append((around, line))
    return found


ALL = [(path, around, line) for path in DOCUMENTS for around, line in commands(path)]
IDS = [f"{name(path)}-{line[:50]}" for path, _, line in ALL]
OWN = [(path, line) for path, _, line in ALL if re.match(r"(echo .*\| )?dynaspec ", line)]


def arguments(line: str) -> list[str]:
    """Words behind ``dynaspec``, without a comment."""
    words = shlex.split(line.split("| ")[-1], comments=True)
    assert words[0] == "dynaspec"
    return words[1:]


def test_there_are_commands() -> None:
    assert len(OWN) >= 15
    assert sum(path == README for path, _ in OWN) >= 4


@pytest.mark.parametrize(("path", "line"), OWN, ids=[f"{name(p)}-{c[:60]}" for p, c in OWN])
def test_it_parses(path: Path, line: str, tmp_path: Path) -> None:
    """Every option exists and takes its value; names in capitals and of files stand for real
    ones."""
    words = [re.sub(r"(\./)?[\w.-]*my-bundle$", str(tmp_path), w) for w in arguments(line)]
    words = [EXAMPLES.get(word, word) for word in words]
    with click.Context(cli, info_name="dynaspec", **cli.context_settings) as parent:
        command = cli.get_command(parent, words[0])
        assert command is not None, words[0]
        command.make_context(words[0], words[1:], parent=parent)


@pytest.mark.parametrize(("path", "around", "line"), ALL, ids=IDS)
def test_what_needs_data_that_is_not_published_says_so(path: Path, around: str, line: str) -> None:
    if any(re.search(rf"\b{word}\b", line) for word in UNPUBLISHED):
        assert SAYS_SO.search(around), f"{name(path)}: {line}"


@pytest.mark.parametrize(("path", "around", "line"), ALL, ids=IDS)
def test_targets_and_scripts_exist(path: Path, around: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    made = "\n".join((ROOT / file).read_text() for file in ("Makefile", "cuda.mk"))
    if words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{re.escape(target)}:", made, re.M), target
    for word in words:
        if re.match(r"(\./)?(benchmarks|examples|tests|tools|\.ci)/", word):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize(
    "code",
    [code for page in ("README.md", "docs/guide/python.md") for _, code in
     blocks(ROOT / page, "python") if code.startswith("from dynaspec_cli")],
)  # fmt: skip
def test_python_runs(
    code: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from dynaspec_cli import Engine

    tiny = Engine.load(str(tiny_model_dir), dtype="float32", drafter="none")
    monkeypatch.setattr(Engine, "load", lambda: tiny)
    exec(code, {})
    assert capsys.readouterr().out.strip()


def dynaspec(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dynaspec_cli", *args],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.slow
def test_your_own_model_in_three_commands(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The README's, with a tiny model and fewer steps."""
    three = [line for path, line in OWN if path == README and "MODEL" in line]
    assert [arguments(line)[0] for line in three] == ["train-drafter", "build-clusters", "generate"]
    corpus = tmp_path / "texts.jsonl.gz"
    with gzip.open(corpus, "wt") as file:
        for i in range(300):
            text = f"The quick brown fox number {i} jumps over the lazy dog. " * 8
            file.write(json.dumps({"text": text, "task": "t"}) + "\n")
    places = {"MODEL": tiny_model_dir, "texts.jsonl.gz": corpus}
    places |= {name: tmp_path / name for name in ("my-drafter", "my-bundle")}
    extra = {
        "train-drafter": ["--steps", "2", "--batch-tokens", "64"],
        "build-clusters": ["--clusters", "8", "--minutes", "0.02"],
        "generate": ["--max-new-tokens", "8", "--json"],
    }
    for line in three:
        words = [str(places.get(word, word)) for word in arguments(line)]
        if "--minutes" in words:
            del words[words.index("--minutes") :][:2]
        done = dynaspec(*words, *extra[words[0]], "--dtype", "float32")
        assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["settings"]["shortlist"] == "dynaspec"
    assert result["num_spec_steps"] > 0


RUNNABLE = [
    line for path, line in OWN
    if not re.search(r"MODEL|FOLDER|DATA|FILE|DIR|OUT|RESULTS|comb|my-|/", line)
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("line", dict.fromkeys(RUNNABLE))
def test_it_runs_with_the_default_model(line: str, tmp_path: Path) -> None:
    command = line.replace("dynaspec ", "python -m dynaspec_cli ", 1)
    done = subprocess.run(
        ["bash", "-c", f"cd {shlex.quote(str(ROOT))} && {command}"],
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
