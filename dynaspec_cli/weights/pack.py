"""A GGUF file's blocks -> packed weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops.formats import PACKED, PackedFormat
from dynaspec_cli.ops.pages import HugePages
from dynaspec_cli.weights.weight import Weight

BYTES_AT_ONCE = 16 << 20
"""Packed at a time: as much of a file and of what was made of it lie in memory together."""


@dataclass(frozen=True)
class Blocks:
    """``rows``: pieces uint8 [m, row bytes] of a file, which follow each other in the weight;
    ``sources``: the tensors that they are of."""

    rows: tuple[Tensor, ...]
    form: PackedFormat
    columns: int
    sources: tuple[str, ...] = ()


def packs(block_type: str, columns: int) -> PackedFormat | None:
    """The packed form of a file's block type ("Q4_K"); None where there is none, or where rows of
    ``columns`` values are no whole blocks."""
    form = PACKED.get(block_type.lower())
    return form if form is not None and form.fits(columns) else None


def ignore(source: str) -> None:
    """Where nobody asks."""


def pack(
    matrices: Sequence[Blocks], room: HugePages, packed: Callable[[str], None] = ignore
) -> list[Weight]:
    """Packed weights, one after another in ``room``. ``packed`` is told each source from which
    something was packed.

    Raises ``ValueError`` for a scale that is NaN or infinite.
    """
    empty = torch.empty(0)
    sizes = [sum(part.nbytes for part in blocks.rows) for blocks in matrices]
    weights = []
    for blocks, place in zip(matrices, room.parts(sizes), strict=True):
        data = place.view(-1, blocks.form.row_bytes(blocks.columns))
        at = 0
        for part in blocks.rows:
            for piece in part.split(max(1, BYTES_AT_ONCE // part.shape[1])):
                end = at + piece.shape[0]
                ops.pack_blocks(piece, blocks.form.code, blocks.columns, data[at:end])
                at = end
                for source in blocks.sources:
                    packed(source)
        weights.append(Weight(data, blocks.columns, blocks.form, empty))
    return weights
