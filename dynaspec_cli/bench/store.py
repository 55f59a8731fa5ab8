"""``samples.jsonl``: appended prompt by prompt, so that a killed run loses at most the prompt in
flight."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from dynaspec_cli.bench.method import Sample
from dynaspec_cli.errors import DynaSpecError

FILE = "samples.jsonl"


def write_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DynaSpecError(f"--out: cannot write {path}: {error.strerror}") from error


def read_samples(path: Path, option: str) -> list[Sample]:
    """The rows of a samples.jsonl, without a last line that a kill tore. ``option`` is named in the
    error of a line that is no row."""
    rows: list[Sample] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        if not line.strip():
            continue
        try:
            rows.append(Sample.from_json(json.loads(line)))
        except ValueError as error:
            raise DynaSpecError(
                f"{option}: {path} holds a line that is no JSON object; use another folder"
            ) from error
    return rows


class SampleStore:
    """The samples of a run; ``folder`` None keeps them in memory only."""

    def __init__(self, folder: Path | None):
        self._path = None if folder is None else folder / FILE
        self.samples: list[Sample] = []

    def resume(self, methods: Sequence[str]) -> None:
        """Read what an earlier run left. A prompt (and repeat) counts when every method's row is
        there; the rest, a line that the kill tore included, is dropped from the file and run
        again."""
        if self._path is None or not self._path.exists():
            return
        rows = read_samples(self._path, "--resume")
        done = self._complete(rows, methods)
        self.samples = [s for s in rows if (s.suite, s.id, s.repeat) in done]
        write_atomic(self._path, "".join(_line(s) for s in self.samples))

    @staticmethod
    def _complete(rows: Sequence[Sample], methods: Sequence[str]) -> set[tuple[str, str, int]]:
        present: dict[tuple[str, str, int], set[str]] = {}
        for sample in rows:
            present.setdefault((sample.suite, sample.id, sample.repeat), set()).add(sample.method)
        return {key for key, names in present.items() if names >= set(methods)}

    def append(self, samples: Sequence[Sample]) -> None:
        """Add a prompt's rows in one write, on disk before the next prompt starts."""
        self.samples.extend(samples)
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.write("".join(_line(sample) for sample in samples))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DynaSpecError(f"--out: cannot write {self._path}: {error.strerror}") from error


def _line(sample: Sample) -> str:
    return json.dumps(sample.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n"
