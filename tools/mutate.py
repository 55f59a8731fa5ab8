"""Mutation run: change one operator, comparison or index at a time and see whether tests notice.

    python tools/mutate.py dynaspec_cli/sampling/verify.py \\
        --tests tests/unit/test_sampling_verify.py
    python tools/mutate.py csrc/cpu/kernels/draw.cpp \\
        --build "python setup.py build_ext --inplace" --tests tests/unit/test_ops_draw.py

    python tools/mutate.py --plan tools/mutants.toml --out verdicts.txt

Each mutant replaces one token outside comments and strings; the tests run until the first failure.
A plan names files with their tests, the quick ones that kill most first, then those that only the
survivors meet. Survivors are printed with their line, and appended to --out as they are found, so
that a run that was ended goes on (--out is read first; with --again survivors are tried again, by
new tests). The file is put back whatever happens: run it in a copy of the tree all the same.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import time
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch  # noqa: F401  (loaded once, before the forks)

SWAPS = {
    "+": ["-"], "-": ["+"], "*": ["/"], "/": ["*"], "<": ["<=", ">"], ">": [">=", "<"],
    "<=": ["<", ">="], ">=": [">", "<="], "==": ["!="], "!=": ["=="], "+=": ["-="], "-=": ["+="],
    "*=": ["/="], "/=": ["*="], "and": ["or"], "or": ["and"], "&&": ["||"], "||": ["&&"],
    "not": [""], "min": ["max"], "max": ["min"], "True": ["False"], "False": ["True"],
    "0": ["1"], "1": ["0"], "2": ["1"], "0.0": ["1.0"], "1.0": ["0.0"],
}  # fmt: skip


class Mutant(NamedTuple):
    line: int
    column: int
    old: str
    new: str

    def name(self, path: Path) -> str:
        return f"{path}:{self.line}:{self.column}: {self.old} -> {self.new or 'nothing'}"


def python_tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """(line from 1, column from 0, token) of operators, names and numbers; no annotations of
    functions, no imports."""
    for token in tokenize.generate_tokens(StringIO(text).readline):
        first = token.line.lstrip()
        if first.startswith(("import ", "from ", "@", "def ", "class ")):
            continue
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER):
            yield token.start[0], token.start[1], token.string


CPP = re.compile(r"//.*|\"(?:\\.|[^\"\\])*\"|\b\w[\w.]*\b|<=|>=|==|!=|&&|\|\||[-+*/]=|[-+*/<>]")


def cpp_tokens(text: str) -> Iterator[tuple[int, int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        code = line.split("//")[0]
        if code.lstrip().startswith(("#", "template", "for (auto")) or (
            "<" in code and "::" in code
        ):
            continue
        for match in CPP.finditer(code):
            spaced = code[match.start() - 1 : match.start()] == " "
            if match[0] in "<>*-+/" and not (spaced and code[match.end() : match.end() + 1] == " "):
                continue
            yield number, match.start(), match[0]


def mutants(path: Path, text: str) -> list[Mutant]:
    tokens = python_tokens(text) if path.suffix == ".py" else cpp_tokens(text)
    return [
        Mutant(line, column, old, new) for line, column, old in tokens for new in SWAPS.get(old, [])
    ]


def changed(text: str, mutant: Mutant) -> str:
    lines = text.splitlines(keepends=True)
    line = lines[mutant.line - 1]
    end = mutant.column + len(mutant.old)
    lines[mutant.line - 1] = line[: mutant.column] + mutant.new + line[end:]
    return "".join(lines)


def killed(tests: list[str], build: str | None, timeout: float, unchanged: bool = False) -> bool:
    """Does a test fail, or the build, or does either hang? The tests run in a fork that has torch
    loaded already and nothing of the project. The ``unchanged`` tree's bytecode is kept; a mutant's
    is not, since one of the same second and size would be taken for it."""
    try:
        if build and subprocess.run(build, shell=True, capture_output=True, timeout=600).returncode:
            return True
    except subprocess.TimeoutExpired:
        return True
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        signal.alarm(int(timeout))
        sys.path.insert(0, str(Path.cwd()))
        sys.dont_write_bytecode = not unchanged
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])) != 0)
    return os.waitpid(child, 0)[1] != 0


class Job(NamedTuple):
    """A file, and the tests that its mutants meet: ``tests``, then ``slower`` for those that live.
    ``every``: take every n-th mutant."""

    file: Path
    tests: list[str]
    slower: Sequence[str] = ()
    build: str | None = None
    every: int = 1


def planned(plan: Path) -> list[Job]:
    entries = tomllib.loads(plan.read_text(encoding="utf-8"))["files"]
    return [Job(Path(name), **entry) for name, entry in entries.items()]


def verdicts(out: Path | None, again: bool) -> dict[str, str]:
    seen = out.read_text(encoding="utf-8").splitlines() if out and out.exists() else []
    done = {line.split(" ", 1)[1]: line.split(" ", 1)[0] for line in seen}
    return {name: verdict for name, verdict in done.items() if verdict == "killed" or not again}


def run(
    job: Job, done: dict[str, str], out: Path | None, timeout: float, until: float
) -> tuple[int, int]:
    """(mutants, survivors) of one file; raises SystemExit where its tests fail without one, or
    once it is later than ``until`` (``time.monotonic``)."""
    text = job.file.read_text(encoding="utf-8")
    chosen = mutants(job.file, text)[:: job.every]
    names = [mutant.name(job.file) for mutant in chosen]
    missing = [m for m, name in zip(chosen, names, strict=True) if name not in done]
    if missing and killed(job.tests, job.build, 10 * timeout, unchanged=True):
        raise SystemExit(f"{job.file}: the tests fail without a mutation")
    try:
        for mutant in missing:
            if time.monotonic() > until:
                raise SystemExit(f"{job.file}: out of time; go on with the same --out")
            job.file.write_text(changed(text, mutant), encoding="utf-8")
            dead = killed(job.tests, job.build, timeout)
            if not dead and job.slower:
                dead = killed(list(job.slower), None, 10 * timeout)
            name = mutant.name(job.file)
            done[name] = "killed" if dead else "survived"
            if out:
                with out.open("a", encoding="utf-8") as log:
                    log.write(f"{done[name]} {name}\n")
    finally:
        job.file.write_text(text, encoding="utf-8")
        if missing and job.build:
            subprocess.run(job.build, shell=True, capture_output=True)
    for mutant, name in zip(chosen, names, strict=True):
        if done[name] == "survived":
            print(f"{name}    {text.splitlines()[mutant.line - 1].strip()}", flush=True)
    return len(names), sum(done[name] == "survived" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--plan", type=Path, help="TOML: files with tests, slower, build, every")
    parser.add_argument("--only", help="of the plan, files whose path holds this")
    parser.add_argument("--tests", nargs="+", help="paths and options of pytest")
    parser.add_argument("--build", help="command to run before the tests")
    parser.add_argument("--out", type=Path, help="verdicts, one a line; read first")
    parser.add_argument("--again", action="store_true", help="try survivors in --out again")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a test run")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so many")
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant")
    asked = parser.parse_args()
    if asked.plan:
        jobs = [job for job in planned(asked.plan) if (asked.only or "") in str(job.file)]
    elif asked.file and asked.tests:
        jobs = [Job(asked.file, asked.tests, build=asked.build, every=asked.every)]
    else:
        parser.error("expected a file with --tests, or --plan")
    until = time.monotonic() + asked.seconds
    done = verdicts(asked.out, asked.again)
    total = alive = 0
    for job in jobs:
        count, left = run(job, done, asked.out, asked.timeout, until)
        print(f"{job.file}: {count} mutants, {left} survived", flush=True)
        total, alive = total + count, alive + left
    print(f"{total} mutants, {alive} survived")


if __name__ == "__main__":
    main()
