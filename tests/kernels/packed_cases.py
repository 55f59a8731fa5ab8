"""Random rows of a GGUF file's blocks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops.formats import PACKED, PackedFormat

FORMATS = list(PACKED)


def make_blocks(form: PackedFormat, m: int, columns: int, seed: int) -> NDArray[np.uint8]:
    """uint8 [m, row bytes]: any codes, scales (at ``halves``) of both signs that keep sums of order
    1, some of them denormal or zero."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (m * columns // form.block[0], form.block[1]), np.uint8)
    for at, size in halves(form):
        scale = rng.normal(size=len(blocks)) * size / columns**0.5
        scale[rng.random(len(blocks)) < 0.05] = 3e-7
        scale[rng.random(len(blocks)) < 0.05] = 0.0
        blocks[:, at : at + 2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(m, form.row_bytes(columns))


def halves(form: PackedFormat) -> list[tuple[int, float]]:
    """Where a block's scale (and minimum) begins, and its usual size where codes are random."""
    if form.name == "q6_k":
        return [(208, 1 / 2400)]
    size = 1 / 2 ** (form.bits - 1)
    if form.name in ("q4_k", "q5_k"):
        return [(0, size / 36), (2, 1 / 36)]
    return [(0, size), (2, 1.0)] if form.minimum else [(0, size)]


def make_packed(form: PackedFormat, m: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """(packed rows uint8 [m, row bytes], what they stand for, float32 [m, columns])."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks = make_blocks(form, m, columns, seed)
    out = torch.empty(blocks.shape, dtype=torch.uint8)
    ops.pack_blocks(torch.from_numpy(blocks), form.code, columns, out)
    kind = GGMLQuantizationType[form.name.upper()]
    return out, torch.from_numpy(dequantize(blocks, kind))
