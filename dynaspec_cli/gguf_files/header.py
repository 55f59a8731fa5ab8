"""The header of a GGUF file: its keys and its table of tensors.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: magic, version
u32, tensor count u64, key count u64, the key/value pairs, then for each tensor its name, axes
(fastest first), type and offset into the data part, which begins at the next multiple of
``general.alignment``. Read by ourselves: the ``gguf`` package makes an array of every token and
takes ten seconds for a vocabulary of 262,144.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.blocks import BLOCK_TYPES
from dynaspec_cli.gguf_files.pieces import Bytes, Pieces

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ENTRIES = 1_000_000
MAX_AXES = 4

SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9


class Texts:
    """An array of strings, decoded when it is asked for: a vocabulary that a cache answers for is
    never read."""

    def __init__(self, data: Bytes, starts: array[int], end: int) -> None:
        self._data = data
        self._starts = starts
        self._end = end

    def __len__(self) -> int:
        return len(self._starts)

    def at(self, index: int) -> str:
        """One entry; what is no UTF-8 in it becomes U+FFFD."""
        start = self._starts[index]
        last = index + 1 == len(self._starts)
        end = self._end if last else self._starts[index + 1] - 8
        return bytes(self._data[start:end]).decode("utf-8", "replace")

    def raw(self) -> bytes:
        """All bytes, lengths included: what a cache key is made of."""
        return bytes(self._data[self._starts[0] - 8 : self._end]) if self._starts else b""

    def decoded(self) -> list[str]:
        """Raises ``UnicodeDecodeError`` where an entry is no UTF-8."""
        data, begin = self.raw(), self._starts[0] - 8 if self._starts else 0
        starts = [start - begin for start in self._starts]
        ends = [start - 8 for start in starts[1:]] + [len(data)]
        return [data[start:end].decode() for start, end in zip(starts, ends, strict=True)]


Numbers = NDArray[np.generic]
Value = bool | int | float | str | Numbers | Texts


@dataclass(frozen=True)
class TensorEntry:
    """A row of the table: ``axes`` fastest first, as they are stored; ``offset`` and ``size`` in
    bytes, ``offset`` from the begin of the file."""

    name: str
    axes: tuple[int, ...]
    block_type: str
    offset: int
    size: int

    @property
    def rows(self) -> int:
        return math.prod(self.axes[1:])

    @property
    def columns(self) -> int:
        return self.axes[0] if self.axes else 1


@dataclass(frozen=True)
class Header:
    """``keys`` and ``tensors`` by name, in the file's order; ``data_start``: where the data part
    begins."""

    keys: dict[str, Value]
    tensors: dict[str, TensorEntry]
    data_start: int


class _Cursor:
    """Reads forward through the header; running past its end is a truncated file."""

    def __init__(self, data: Bytes) -> None:
        self.bytes = data
        self.data = data.data
        self.at = 0

    def take(self, size: int) -> memoryview:
        start, end = self.at, self.at + size
        if size < 0 or end > len(self.data):
            raise EOFError
        self.at = end
        return self.data[start:end]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self) -> str:
        return bytes(self.take(self.u64())).decode("utf-8")

    def texts(self, count: int) -> Texts:
        starts, at, length = array("Q"), self.at, struct.Struct("<Q").unpack_from
        limit = len(self.data)
        if count * 8 > limit - at:
            raise EOFError
        try:
            for _ in range(count):
                at += 8
                starts.append(at)
                at += length(self.data, at - 8)[0]
        except struct.error:
            raise EOFError from None
        if at > limit:
            raise EOFError
        self.at = at
        return Texts(self.bytes, starts, at)

    def value(self, kind: int) -> Value:
        if kind in SCALARS:
            scalar: bool | int | float = self._numbers(kind, 1)[0].item()
            return scalar
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"unknown value type {kind}")
        inner, count = self.u32(), self.u64()
        if inner in SCALARS:
            return self._numbers(inner, count)
        if inner == STRING:
            return self.texts(count)
        raise ValueError(f"an array of value type {inner}")

    def _numbers(self, kind: int, count: int) -> Numbers:
        layout = np.dtype(SCALARS[kind])
        return np.frombuffer(bytes(self.take(layout.itemsize * count)), layout)


def read_header(pieces: Pieces) -> Header:
    """The header of a whole file; it must lie in the first piece.

    Raises ``DynaSpecError`` for what is no GGUF file, a truncated or damaged one, another byte
    order, a block type that is not known, and rows that are no whole number of blocks.
    """
    name = pieces.name
    try:
        return _read(pieces)
    except EOFError:
        raise DynaSpecError(
            f"{name}: the GGUF file is truncated (its header does not end); download it again"
        ) from None
    except (ValueError, OverflowError) as error:
        raise DynaSpecError(
            f"{name}: the GGUF file is corrupt ({error}); download it again"
        ) from error


def _read(pieces: Pieces) -> Header:
    cursor = _Cursor(pieces.first)
    magic = bytes(cursor.take(4))
    if magic != MAGIC:
        raise DynaSpecError(
            f"{pieces.name}: no GGUF file (it starts with {magic!r}, expected {MAGIC!r}); expected "
            "a model folder or a .gguf file"
        )
    version = cursor.u32()
    if version and version & 0xFFFF == 0:
        raise DynaSpecError(
            f"{pieces.name}: the GGUF file is big-endian, expected little-endian; turn it round "
            "with gguf-convert-endian of the gguf package"
        )
    if version not in VERSIONS:
        raise DynaSpecError(
            f"{pieces.name}: GGUF version {version}, expected 2 or 3; convert the model again"
        )
    tensors, keys = cursor.u64(), cursor.u64()
    if max(tensors, keys) > MAX_ENTRIES:
        raise ValueError(f"{tensors} tensors and {keys} keys")
    values: dict[str, Value] = {}
    for key in _distinct((cursor.text() for _ in range(keys)), "key"):
        values[key] = cursor.value(cursor.u32())
    rows = []
    for name in _distinct((cursor.text() for _ in range(tensors)), "tensor"):
        count = cursor.u32()
        if not 1 <= count <= MAX_AXES:
            raise ValueError(f"tensor {name!r} has {count} axes")
        axes = tuple(cursor.u64() for _ in range(count))
        rows.append((name, axes, cursor.u32(), cursor.u64()))
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    table = {row[0]: _entry(pieces, *row, start, alignment) for row in rows}
    end = max((entry.offset + entry.size for entry in table.values()), default=0)
    if end > pieces.size:
        raise DynaSpecError(
            f"{pieces.name}: the GGUF file is truncated ({pieces.size} bytes, its tensors need "
            f"{end}); download it again"
        )
    return Header(values, table, start)


def _distinct(names: Iterator[str], what: str) -> Iterator[str]:
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} stands there twice")
        seen.add(name)
        yield name


def _entry(
    pieces: Pieces,
    name: str,
    axes: tuple[int, ...],
    kind: int,
    offset: int,
    start: int,
    alignment: int,
) -> TensorEntry:
    def refuse(why: str) -> NoReturn:
        raise DynaSpecError(f"{pieces.name}: tensor {name!r} {why}")

    if kind not in BLOCK_TYPES:
        refuse(
            f"has block type {kind}, which this version does not know; take a file of another "
            "quantisation"
        )
    block = BLOCK_TYPES[kind]
    if axes[0] % block.values:
        refuse(
            f"has rows of {axes[0]} values, but blocks of {block.name} hold {block.values}; the "
            "file is damaged: download it again"
        )
    if offset % alignment:
        raise ValueError(f"tensor {name!r} begins at {offset}, no multiple of {alignment}")
    size = math.prod(axes) // block.values * block.bytes
    return TensorEntry(name, axes, block.name, start + offset, size)
