"""A first look into a GGUF file: is it whole, and how many weights does it hold.

Reads the header alone (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): little-endian;
magic, version u32, tensor count u64, key count u64, the key/value pairs, then for each tensor its
name, axes, type and offset. Whether the last tensor ends inside the file tells a truncated download
before a minute is spent on it.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from dynaspec_cli.errors import DynaSpecError

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GGUFSummary:
    """``architecture`` as the file names it, ``num_weights`` over all tensors, ``tensor_bytes`` of
    the data part."""

    architecture: str
    num_weights: int
    tensor_bytes: int


class _Cursor:
    """Reads forward through a buffer; running past its end is a truncated file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, layout: str) -> int:
        size = struct.calcsize(layout)
        value = struct.unpack(layout, self.skip(size))[0]
        return int(value)

    def skip(self, size: int) -> bytes:
        end = self.at + size
        if size < 0 or end > len(self.data):
            raise EOFError
        start, self.at = self.at, end
        return self.data[start : min(end, start + 256)]

    def text(self) -> str:
        return self.skip(self.take("<Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> int | str | None:
        if kind in SCALAR_BYTES:
            raw = self.skip(SCALAR_BYTES[kind])
            return int.from_bytes(raw, "little")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"unknown value type {kind}")
        inner, count = self.take("<I"), self.take("<Q")
        if inner in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[inner] * count)
        else:
            for _ in range(count):
                self.value(inner)
        return None


def inspect_gguf(path: Path) -> GGUFSummary:
    """Check that ``path`` is a whole GGUF file; raises ``DynaSpecError`` where it is not."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _inspect(data, path)
    except EOFError:
        raise DynaSpecError(
            f"{path}: the GGUF file is truncated (its header does not end); download it again"
        ) from None
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        raise DynaSpecError(
            f"{path}: the GGUF file is corrupt ({error}); download it again"
        ) from error
    except OSError as error:
        raise DynaSpecError(f"{path}: cannot be read ({error.strerror})") from error


def _inspect(data: mmap.mmap, path: Path) -> GGUFSummary:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor = _Cursor(data)
    if cursor.skip(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version = cursor.take("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3")
    tensors, keys = cursor.take("<Q"), cursor.take("<Q")
    if tensors > 1_000_000 or keys > 1_000_000:
        raise ValueError(f"{tensors} tensors and {keys} keys")
    found: dict[str, int | str | None] = {}
    for _ in range(keys):
        name = cursor.text()
        found[name] = cursor.value(cursor.take("<I"))
    weights = end = 0
    for _ in range(tensors):
        name = cursor.text()
        axes = cursor.take("<I")
        if axes > 8:
            raise ValueError(f"tensor {name!r} has {axes} axes")
        count = 1
        for _ in range(axes):
            count *= cursor.take("<Q")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.take("<I"))]
        end = max(end, cursor.take("<Q") + count // block * size)
        weights += count
    alignment = int(found.get("general.alignment") or DEFAULT_ALIGNMENT)
    start = -(-cursor.at // alignment) * alignment
    if start + end > len(data):
        raise DynaSpecError(
            f"{path}: the GGUF file is truncated ({len(data)} bytes, its tensors need "
            f"{start + end}); download it again"
        )
    return GGUFSummary(str(found.get("general.architecture")), weights, end)
