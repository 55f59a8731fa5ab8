"""The file of results: a JSON line a prompt, appended whole, in the order in which they end."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from dynaspec_cli.batch.prompts import result_key
from dynaspec_cli.errors import DynaSpecError

NOT_COMPARED = frozenset(("device", "kernels", "target_kernels", "threads", "versions"))
"""Settings that may differ between the parts of a run that was interrupted."""


class ResultsFile:
    """Open while a run goes on; another run on the same file is refused. ``done``: keys of the
    prompts that have a line; ``failed``: how many of these are errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.failed = 0
        self._settings: Mapping[str, Any] | None = None
        self._lock = FileLock(f"{path}.lock")

    def __enter__(self) -> ResultsFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except Timeout:
            raise DynaSpecError(f"--out {self.path}: another run is writing there") from None
        except OSError as error:
            raise self._error(error) from error
        try:
            self._resume()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _resume(self) -> None:
        """Read what is there; a line that a kill tore is cut off."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                result = json.loads(line)
                key = result_key(result)
            except (ValueError, AttributeError) as error:
                raise DynaSpecError(
                    f"--out {self.path}: line {number} is no result of an earlier run; choose "
                    "another file"
                ) from error
            self.done.add(key)
            self.failed += "error" in result
            self._settings = self._settings or result.get("settings")

    def append(self, result: Mapping[str, Any]) -> None:
        """One line, on disk when this returns. Raises DynaSpecError where the file's other results
        were made with other settings, or nothing can be written."""
        key = result_key(result)
        if key in self.done:
            raise DynaSpecError(f"--out {self.path}: there are two results for {key}")
        if "settings" in result:
            self._settings = self._settings or result["settings"]
            self._compare(result["settings"])
        line = json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            data = line.encode()
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise self._error(error) from error
        self.done.add(key)
        self.failed += "error" in result

    def _compare(self, settings: Mapping[str, Any]) -> None:
        assert self._settings is not None
        names = (self._settings.keys() | settings.keys()) - NOT_COMPARED
        for name in sorted(names):
            theirs, ours = self._settings.get(name), settings.get(name)
            if theirs != ours:
                raise DynaSpecError(
                    f"--out {self.path}: its results were made with {name} {theirs}, not {ours}; "
                    "choose another file"
                )

    def _error(self, error: OSError) -> DynaSpecError:
        return DynaSpecError(f"--out {self.path}: cannot be written ({error.strerror})")
