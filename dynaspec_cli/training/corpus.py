"""Reads a corpus: .txt, .jsonl and .jsonl.gz files with a "text" field, or a hub dataset.

A text file is cut at blank lines; a line of a JSON file is one text. Files are streamed; which
texts are held out depends on the text alone, so that a resumed run, another order of files and
another tool all hold out the same.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import TEXT_ENCODING, DynaSpecError, is_utf8

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
HELD_OUT_SHARE = 0.02


@dataclass(frozen=True)
class CorpusText:
    """One text and the group it is reported under: its "task", else its "lang", else the file's
    name."""

    text: str
    group: str

    def held_out(self, share: float = HELD_OUT_SHARE) -> bool:
        """Whether the text belongs to the held-out part, decided by a hash of its content."""
        digest = hashlib.blake2b(self.text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < share * 2**64


def read_corpus(sources: Sequence[str | Path]) -> Iterator[CorpusText]:
    """Texts of all sources in order. Raises DynaSpecError for a missing or empty file, a file that
    is not UTF-8 and a source without a usable line."""
    if not sources:
        raise DynaSpecError(
            '--corpus: expected at least one file (.txt, .jsonl, .jsonl.gz with "text") '
            "or a hub dataset, got none"
        )
    for source in sources:
        path = Path(source)
        usable = 0
        texts = _file(path) if path.exists() or _looks_like_file(path) else _dataset(str(source))
        for text in texts:
            usable += 1
            yield text
        if not usable:
            raise DynaSpecError(
                f"{source}: no usable line: expected text in paragraphs, "
                'or JSON objects with a non-empty "text"'
            )


def _looks_like_file(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) or path.is_absolute() or str(path).startswith(".")


def _file(path: Path) -> Iterator[CorpusText]:
    if not path.is_file():
        raise DynaSpecError(f"{path}: no such corpus file")
    if path.stat().st_size == 0:
        raise DynaSpecError(f"{path}: the corpus file is empty")
    if not path.name.endswith(SUFFIXES):
        raise DynaSpecError(f"{path}: expected one of {', '.join(SUFFIXES)}")
    reader = _paragraphs if path.suffix == ".txt" else _json_lines
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DynaSpecError(
            f"{path}: not UTF-8 text (byte {error.start} of a block); convert the file to UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DynaSpecError(f"{path}: could not be read ({error})") from error


def _paragraphs(path: Path) -> Iterator[CorpusText]:
    held: list[str] = []
    with path.open(encoding=TEXT_ENCODING) as lines:
        for line in lines:
            if line.strip():
                held.append(line)
            elif held:
                yield CorpusText("".join(held).strip(), path.stem)
                held = []
    if held:
        yield CorpusText("".join(held).strip(), path.stem)


def _json_lines(path: Path) -> Iterator[CorpusText]:
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding=TEXT_ENCODING) as lines:
        for number, line in enumerate(lines, 1):
            found = _from_json(line, stem)
            if found is None:
                continue
            if not is_utf8(found.text):  # half of a surrogate pair, written as an escape
                raise DynaSpecError(
                    f"--corpus {path}: line {number} holds half a character (a lone surrogate); "
                    "mend or remove it"
                )
            yield found


def _from_json(line: str, default_group: str) -> CorpusText | None:
    """A line that is no JSON object with a text is skipped; a file of such lines only is
    refused."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(data, dict):
        return None
    text = data.get("text")
    if not isinstance(text, str) or not text.strip():
        return None
    group = data.get("task") or data.get("lang") or default_group
    return CorpusText(text, str(group))


HUB_TEXTS = 200_000
"""Texts taken of a hub dataset: some have more than a disk holds, and all are read before the
training begins."""


def _dataset(name: str) -> Iterator[CorpusText]:
    try:
        load_dataset = importlib.import_module("datasets").load_dataset
    except ImportError as error:
        raise DynaSpecError(
            f"--corpus {name}: no such file; reading a hub dataset needs the package `datasets` "
            "(pip install datasets)"
        ) from error
    try:
        rows = load_dataset(name, split="train", streaming=True)
        for row in itertools.islice(rows, HUB_TEXTS):
            text = row.get("text")
            if isinstance(text, str) and text.strip():
                yield CorpusText(text, str(row.get("task") or name))
    except DynaSpecError:
        raise
    except Exception as error:
        raise DynaSpecError(
            f"--corpus {name}: no such file, and no readable hub dataset ({type(error).__name__})"
        ) from error
