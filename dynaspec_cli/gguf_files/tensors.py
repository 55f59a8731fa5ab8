"""The tensors of a GGUF model as the file stores them: whole rows of quantised blocks, mapped.

A row of ``columns`` values is ``columns / block`` consecutive blocks, so rows can be picked,
reordered and concatenated as bytes; values cannot. Nothing is read before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.blocks import BY_NAME
from dynaspec_cli.gguf_files.header import TensorEntry
from dynaspec_cli.gguf_files.pieces import Bytes, Pieces

SCALE_BYTES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where a block's float16 scales (and minima) begin."""

FLOATS = ("F32", "F16", "BF16")
ROWS_AT_ONCE = 1 << 22
"""Values de-quantised at a time."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: ``shape`` (rows, columns), a vector being one row; ``block_type`` as ggml names
    it ("Q8_0", "F32"); ``parts`` read-only uint8 [m, row_bytes], the rows one after another: views
    of the mapped file, but for a row that crosses a border of pieces and for rows that were picked;
    ``place``: the file, for messages."""

    name: str
    block_type: str
    shape: tuple[int, int]
    parts: tuple[Bytes, ...]
    place: str

    @property
    def raw(self) -> Bytes:
        """Uint8 [rows, row_bytes]: a copy where there is more than one part."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)

    def take(self, rows: NDArray[np.int64]) -> GgufTensor:
        """The tensor of some rows, in the order given."""
        return replace(self, parts=(self._rows(rows),), shape=(len(rows), self.shape[1]))

    def _rows(self, rows: NDArray[np.int64] | slice) -> Bytes:
        if len(self.parts) == 1:
            return self.parts[0][rows]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        out = np.empty((len(rows), self.parts[0].shape[1]), np.uint8)
        begin = 0
        for part in self.parts:
            inside = (rows >= begin) & (rows < begin + len(part))
            out[inside] = part[rows[inside] - begin]
            begin += len(part)
        return out

    def floats(self, rows: NDArray[np.int64] | slice | None = None) -> NDArray[np.float32]:
        """De-quantised rows, float32 [rows, columns] (a copy), by the ``gguf`` package.

        Raises ``DynaSpecError`` for a block type that it cannot de-quantise.
        """
        raw = np.ascontiguousarray(self.raw if rows is None else self._rows(rows))
        if self.block_type == "F32":
            return raw.view(np.float32).copy()
        if self.block_type == "F16":
            return raw.view(np.float16).astype(np.float32)
        if self.block_type == "BF16":
            return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        out = np.empty((raw.shape[0], self.shape[1]), np.float32)
        step = max(1, ROWS_AT_ONCE // max(1, self.shape[1]))
        kind = GGMLQuantizationType[self.block_type]
        try:
            # A NaN scale is reported by name where it is looked for (``check_finite``).
            with np.errstate(all="ignore"):
                for lo in range(0, raw.shape[0], step):
                    out[lo : lo + step] = dequantize(raw[lo : lo + step], kind)
        except NotImplementedError as error:
            raise DynaSpecError(
                f"{self.place}: tensor {self.name!r} has blocks of type {self.block_type}, which "
                "cannot be de-quantised; take a file of another quantisation"
            ) from error
        return out

    def check_finite(self) -> None:
        """Raises ``DynaSpecError`` where a scale (of a float tensor: a value) is NaN or
        infinite. Of block types that have no plain scales nothing is seen here."""
        if not self._finite():
            raise DynaSpecError(
                f"{self.place}: tensor {self.name!r} holds scales or values that are NaN or "
                "infinite; the file is damaged: download it again"
            )

    def _finite(self) -> bool:
        return all(self._part_finite(part) for part in self.parts)

    def _part_finite(self, raw: Bytes) -> bool:
        if self.block_type == "F32":
            return bool(np.isfinite(np.ascontiguousarray(raw).view(np.float32)).all())
        if self.block_type in ("F16", "BF16"):
            exponent = np.uint16(0x7C00 if self.block_type == "F16" else 0x7F80)
            return _exponents_finite(np.ascontiguousarray(raw).view(np.uint16), exponent)
        if self.block_type not in SCALE_BYTES:
            return True
        blocks = np.ascontiguousarray(raw).reshape(-1, BY_NAME[self.block_type].bytes)
        halves = blocks.view(np.uint16)
        return all(
            _exponents_finite(halves[:, at // 2], np.uint16(0x7C00))
            for at in SCALE_BYTES[self.block_type]
        )


def _exponents_finite(bits: NDArray[np.uint16], exponent: np.uint16) -> bool:
    return not bool(((bits & exponent) == exponent).any())


class GgufTensors(Mapping[str, GgufTensor]):
    """The tensors of a model by the file's own names ("blk.0.attn_q.weight"), over all shards of a
    split file."""

    def __init__(self, place: str, shards: list[tuple[Pieces, Mapping[str, TensorEntry]]]) -> None:
        self.place = place
        self._entries = {
            name: (pieces, entry) for pieces, table in shards for name, entry in table.items()
        }

    def __getitem__(self, name: str) -> GgufTensor:
        pieces, entry = self._entries[name]
        parts = pieces.rows(entry.offset, entry.rows, entry.size // max(1, entry.rows))
        return GgufTensor(name, entry.block_type, (entry.rows, entry.columns), parts, self.place)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Iterator[TensorEntry]:
        """Every row of the tables of tensors."""
        return (entry for _, entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) without touching the data."""
        entry = self._entries[name][1]
        return entry.rows, entry.columns

    def forget(self, name: str) -> None:
        """Give the memory of a tensor's mapped pages back; they can still be read."""
        pieces, entry = self._entries[name]
        pieces.forget(entry.offset, entry.size)

    @cached_property
    def num_values(self) -> int:
        """Values of all tensors together."""
        return sum(e.rows * e.columns for _, e in self._entries.values())

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.size for _, entry in self._entries.values())
