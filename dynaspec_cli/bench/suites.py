"""Prompt suites: JSON lines of ``{"id", "task", "turns": [...]}``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from dynaspec_cli.errors import TEXT_ENCODING, DynaSpecError, UsageError, is_utf8

BUILT_IN = ("smoke",)
NAMED = ("spec-bench", "human-eval", "gsm8k", "c4", "openwebtext", "cnn-dailymail", "rare-tokens")

# A name's file is NAME.jsonl with "_" for "-"; the older name of a split is accepted beside it.
_ALIASES = {"gsm8k": ("gsm8k.jsonl", "gsm8k_test.jsonl")}


@dataclass(frozen=True)
class Prompt:
    """One item: ``turns`` are the user's messages, asked one after the other in one context."""

    suite: str
    id: str
    task: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """A named list of prompts; ``sha256`` is of the file's bytes, for provenance. ``built_in``: it
    came with the package, while a user's own file may have such a name too."""

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str
    source: str
    built_in: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in order of first appearance."""
        return tuple(dict.fromkeys(p.task for p in self.prompts))


def load_suite(name: str, data_dir: Path | None = None, limit: int | None = None) -> Suite:
    """A built-in suite, a named one below ``data_dir``, or a ``.jsonl`` file.

    ``limit`` keeps the first N prompts of each task.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit: expected at least 1 prompt per task, got {limit}")
    if name in BUILT_IN:
        raw = resources.files("dynaspec_cli").joinpath(f"data/suites/{name}.jsonl").read_bytes()
        suite = replace(parse_suite(name, raw, f"built-in {name}"), built_in=True)
        return _limited(suite, limit)
    path = _find(name, data_dir)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DynaSpecError(f"--suite {name}: cannot read {path}: {error.strerror}") from error
    suite_name = name if name in NAMED else path.stem
    return _limited(parse_suite(suite_name, raw, path.name), limit)


def _find(name: str, data_dir: Path | None) -> Path:
    if name.endswith(".jsonl"):
        path = Path(name)
        if not path.is_file():
            raise DynaSpecError(f"--suite {name}: expected a file, found none there")
        return path
    if name not in NAMED:
        raise UsageError(
            f"--suite {name}: expected {', '.join(BUILT_IN + NAMED)} or a file that ends in .jsonl"
        )
    files = _ALIASES.get(name, (name.replace("-", "_") + ".jsonl",))
    if data_dir is None:
        raise UsageError(
            f"--suite {name}: expected {files[0]} in a data folder; give it with --data-dir or "
            "DYNASPEC_DATA_DIR"
        )
    for file in files:
        if (data_dir / file).is_file():
            return data_dir / file
    raise DynaSpecError(f"--suite {name}: expected {files[0]} in {data_dir}, found no such file")


def parse_suite(name: str, raw: bytes, source: str) -> Suite:
    """Read JSON lines; a line that does not fit is an error with its number, never skipped."""
    try:
        text = raw.decode(TEXT_ENCODING)
    except UnicodeDecodeError as error:
        raise DynaSpecError(
            f"{source}: expected UTF-8, got an undecodable byte at offset {error.start}"
        ) from error
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    # Only \n ends a line: JSON strings may hold U+2028, at which str.splitlines would cut.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        prompt = _parse_line(name, line, f"{source}, line {number}")
        if prompt.id in seen:
            raise DynaSpecError(
                f"{source}, line {number}: expected a new id, got '{prompt.id}' as in line "
                f"{seen[prompt.id]}"
            )
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise DynaSpecError(f'{source}: expected lines of {{"id", "task", "turns"}}, found none')
    return Suite(name, tuple(prompts), hashlib.sha256(raw).hexdigest(), source)


def _parse_line(suite: str, line: str, where: str) -> Prompt:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise DynaSpecError(
            f"{where}: expected a JSON object, got invalid JSON ({error.msg})"
        ) from error
    if not isinstance(item, dict):
        raise DynaSpecError(f"{where}: expected a JSON object, got {type(item).__name__}")
    for key in ("id", "task"):
        if not isinstance(item.get(key), str) or not item[key]:
            raise DynaSpecError(
                f"{where}: expected a non-empty string '{key}', got {item.get(key)!r}"
            )
    if item["task"] == "all":
        raise DynaSpecError(
            f"{where}: expected a task's name, got 'all', which is kept for the union of tasks"
        )
    turns = item.get("turns")
    if not isinstance(turns, list) or not turns:
        raise DynaSpecError(
            f"{where}: expected 'turns' as a non-empty list of strings, got {turns!r}"
        )
    if not all(isinstance(t, str) and t.strip() for t in turns):
        raise DynaSpecError(f"{where}: expected every turn as a non-empty string")
    for value in (item["id"], item["task"], *turns):
        if not is_utf8(value):
            raise DynaSpecError(
                f"{where}: expected whole characters, got half of one (a lone surrogate) in "
                f"{value[:40]!r}"
            )
    return Prompt(suite, item["id"], item["task"], tuple(turns))


def _limited(suite: Suite, limit: int | None) -> Suite:
    if limit is None:
        return suite
    taken: dict[str, int] = {}
    kept: list[Prompt] = []
    for prompt in suite.prompts:
        if taken.get(prompt.task, 0) < limit:
            taken[prompt.task] = taken.get(prompt.task, 0) + 1
            kept.append(prompt)
    return replace(suite, prompts=tuple(kept))
