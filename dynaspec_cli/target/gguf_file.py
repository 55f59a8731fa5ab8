"""A first look into a GGUF file: is it whole, how many weights does it hold, and which shape.

Reads the header alone (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): little-endian;
magic, version u32, tensor count u64, key count u64, the key/value pairs, then for each tensor its
name, axes, type and offset. Whether the last tensor ends inside the file tells a truncated download
before a minute is spent on it.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.demo_package import ChunkedFile

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
STRING, ARRAY = 8, 9
MAX_LAYERS = 4096
"""Longer lists of integers are about tokens; their values are not kept."""
EMBEDDINGS = "token_embd.weight"
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GGUFSummary:
    """``architecture`` as the file names it, ``num_weights`` over all tensors, ``tensor_bytes`` of
    the data part. ``kv_width``: numbers that a token adds to the KV caches of all layers together.
    The sizes are None where the file does not tell them under the usual names."""

    architecture: str
    num_weights: int
    tensor_bytes: int
    vocab_size: int | None = None
    hidden_size: int | None = None
    kv_width: int | None = None


Value = int | str | tuple[int, ...] | None


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

    def skip_texts(self, count: int) -> None:
        """Past ``count`` strings: a vocabulary of 262,144, so nothing is made of them."""
        at, length = self.at, struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                at += 8 + length(self.data, at)[0]
        except struct.error:
            raise EOFError from None
        self.at = at
        self.skip(0)

    def value(self, kind: int) -> Value:
        if kind in SCALAR_BYTES:
            raw = self.skip(SCALAR_BYTES[kind])
            return int.from_bytes(raw, "little")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"unknown value type {kind}")
        inner, count = self.take("<I"), self.take("<Q")
        if inner in INTEGERS and count <= MAX_LAYERS:
            width = SCALAR_BYTES[inner]
            return tuple(int.from_bytes(self.skip(width), "little") for _ in range(count))
        if inner in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[inner] * count)
        elif inner == STRING:
            self.skip_texts(count)
        else:
            for _ in range(count):
                self.value(inner)
        return None


def inspect_gguf(source: Path | ChunkedFile) -> GGUFSummary:
    """Check that ``source`` is a whole GGUF file; raises ``DynaSpecError`` where it is not. Of a
    file in pieces the first one is read, which holds the header."""
    path = source.chunks[0] if isinstance(source, ChunkedFile) else source
    pieces = source.size if isinstance(source, ChunkedFile) else None
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _inspect(data, path, len(data) if pieces is None else pieces)
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


def _inspect(data: mmap.mmap, path: Path, size: int) -> GGUFSummary:
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
    found: dict[str, Value] = {}
    for _ in range(keys):
        name = cursor.text()
        found[name] = cursor.value(cursor.take("<I"))
    weights = end = 0
    vocab_size = hidden_size = None
    for _ in range(tensors):
        name = cursor.text()
        axes = cursor.take("<I")
        if axes > 8:
            raise ValueError(f"tensor {name!r} has {axes} axes")
        shape = [cursor.take("<Q") for _ in range(axes)]
        count = math.prod(shape)
        if name == EMBEDDINGS and axes == 2:
            hidden_size, vocab_size = shape
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.take("<I"))]
        end = max(end, cursor.take("<Q") + count // block * width)
        weights += count
    alignment = _integer(found.get("general.alignment")) or DEFAULT_ALIGNMENT
    start = -(-cursor.at // alignment) * alignment
    if start + end > size:
        raise DynaSpecError(
            f"{path}: the GGUF file is truncated ({size} bytes, its tensors need "
            f"{start + end}); download it again"
        )
    architecture = str(found.get("general.architecture"))
    kv_width = _kv_width(found, architecture)
    return GGUFSummary(architecture, weights, end, vocab_size, hidden_size, kv_width)


def _integer(value: Value) -> int | None:
    return value if isinstance(value, int) else None


def _kv_width(found: dict[str, Value], architecture: str) -> int | None:
    """Keys and values of one token over all layers. Head counts are one number, or one a layer."""
    layers = _integer(found.get(f"{architecture}.block_count"))
    heads = found.get(f"{architecture}.attention.head_count")
    kv_heads = found.get(f"{architecture}.attention.head_count_kv", heads)
    if isinstance(kv_heads, int) and layers:
        kv_heads = (kv_heads,) * layers
    if not isinstance(kv_heads, tuple) or len(kv_heads) != layers:
        return None
    width = _integer(found.get(f"{architecture}.embedding_length"))
    usual = width // heads if width and isinstance(heads, int) and heads else None
    key = _integer(found.get(f"{architecture}.attention.key_length")) or usual
    value = _integer(found.get(f"{architecture}.attention.value_length")) or usual
    return None if key is None or value is None else sum(kv_heads) * (key + value)
