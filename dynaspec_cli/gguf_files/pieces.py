"""The bytes of one file that lies in one piece or in several, mapped into memory."""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynaspec_cli.errors import DynaSpecError

Bytes = NDArray[np.uint8]

_DROP = getattr(mmap, "MADV_DONTNEED", None)  # not on every system


class Pieces:
    """Byte ranges of the concatenation of ``paths``. A range inside one piece is a view of its
    mapping; one that crosses a border is read into memory when it is asked for.

    Raises ``DynaSpecError`` where a piece cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._pages: list[mmap.mmap | None] = []
        self._maps: list[Bytes] = []
        self._ends: list[int] = []
        size = 0
        for path in self.paths:
            try:
                with path.open("rb") as file:
                    pages = (
                        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                        if path.stat().st_size
                        else None
                    )
            except OSError as error:
                raise DynaSpecError(f"{path}: cannot be read ({error.strerror})") from error
            self._pages.append(pages)
            self._maps.append(np.frombuffer(pages or b"", np.uint8))
            size += self._maps[-1].size
            self._ends.append(size)
        self.size = size

    @property
    def name(self) -> str:
        """What messages call the file: its first piece."""
        return str(self.paths[0])

    @property
    def first(self) -> Bytes:
        """The first piece, where a header lies."""
        return self._maps[0]

    def view(self, start: int, size: int) -> Bytes:
        """uint8 [size], read-only. Raises ``EOFError`` behind the end."""
        if start < 0 or size < 0 or start + size > self.size:
            raise EOFError
        if size == 0:
            return np.empty(0, np.uint8)
        index = bisect.bisect_right(self._ends, start)
        begin = self._ends[index] - self._maps[index].size
        if start + size <= self._ends[index]:
            return self._maps[index][start - begin : start - begin + size]
        return self._joined(index, start - begin, size)

    def rows(self, start: int, count: int, width: int) -> tuple[Bytes, ...]:
        """uint8 [m, width] each, ``count`` rows together: views, but for rows that cross a
        border."""
        if count * width == 0:
            return (np.empty((count, width), np.uint8),)
        parts, row = [], 0
        while row < count:
            at = start + row * width
            room = self._ends[bisect.bisect_right(self._ends, at)] - at
            taken = max(1, min(count - row, room // width))
            parts.append(self.view(at, taken * width).reshape(taken, width))
            row += taken
        return tuple(parts)

    def forget(self, start: int, size: int) -> None:
        """Give the memory of a range back that will not be read again; reading it maps it anew."""
        if _DROP is None:
            return
        begin = 0
        for end, pages in zip(self._ends, self._pages, strict=True):
            low, high = max(start, begin) - begin, min(start + size, end) - begin
            if pages is not None and low < high:
                low -= low % mmap.PAGESIZE
                pages.madvise(_DROP, low, high - low)
            begin = end

    def _joined(self, index: int, start: int, size: int) -> Bytes:
        """Read, not copied from the mappings, whose pages would then count a second time."""
        out = np.empty(size, np.uint8)
        done = 0
        while done < size:
            with self.paths[index].open("rb", buffering=0) as file:
                file.seek(start)
                while done < size:
                    got = file.readinto(out[done:].data)
                    if not got:
                        break
                    done += got
            index, start = index + 1, 0
        out.flags.writeable = False
        return out
