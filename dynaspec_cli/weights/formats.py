"""Forms in which the rows of a matrix are kept: what the names of registry.py stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.errors import UsageError
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.ops.formats import PACKED, PackedFormat
from dynaspec_cli.ops.pages import HugePages
from dynaspec_cli.weights.pack import Blocks, pack
from dynaspec_cli.weights.registry import OPTION
from dynaspec_cli.weights.weight import Weight, dense


@dataclass(frozen=True)
class DenseRows:
    """Every value in one floating-point dtype."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def store(self, rows: Tensor) -> Weight:
        return dense(rows.to(self.dtype))


class Int8Rows:
    """Symmetric whole numbers of 8 bits, one float32 scale a row: ``max |row| / 127``."""

    name = "int8"

    def store(self, rows: Tensor) -> Weight:
        scale = rows.abs().amax(1).clamp_min(1e-12) / 127.0
        return dense(torch.round(rows / scale[:, None]).to(torch.int8), scale)


@dataclass(frozen=True)
class BlockRows:
    """A GGUF file's blocks in the kernels' order; rounded as the library gguf does."""

    form: PackedFormat

    @property
    def name(self) -> str:
        return self.form.name

    def store(self, rows: Tensor) -> Weight:
        from gguf import GGMLQuantizationType, quants

        asked = f"{OPTION} {self.name}"
        if rows.device.type != "cpu" or EXTENSION.module is None:
            raise UsageError(f"{asked}: needs --device cpu and the compiled extension; take int8")
        if not self.form.fits(rows.shape[1]):
            raise UsageError(
                f"{asked}: expected rows of whole blocks of {self.form.block[0]} values, got "
                f"{rows.shape[1]}; take int8"
            )
        kind = GGMLQuantizationType[self.name.upper()]
        blocks = torch.from_numpy(quants.quantize(rows.numpy(), kind))
        return pack([Blocks((blocks,), self.form, rows.shape[1])], HugePages())[0]


FLOAT32 = DenseRows(torch.float32)
BFLOAT16 = DenseRows(torch.bfloat16)
FLOAT16 = DenseRows(torch.float16)
INT8 = Int8Rows()
Q8_0, Q5_1, Q5_0, Q4_1, Q4_0 = (
    BlockRows(PACKED[name]) for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
)
