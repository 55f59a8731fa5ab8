"""A weight matrix in the form in which it is stored and multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.ops.formats import DENSE, PackedFormat

_ROWS_AT_ONCE = 16384  # rows read as float32 at a time: bounds the temporary copy


class WeightFormat(Protocol):
    """What a name of weights/registry.py stands for: a form in which rows can be kept."""

    name: str

    def store(self, rows: Tensor) -> Weight:
        """Float32 rows [m, columns] in this form, on their device. Raises ``UsageError`` where the
        form is not to be had there, or does not fit the columns."""
        ...


class PlainFormat(WeightFormat, Protocol):
    """A form that no op multiplies: its rows are read, and PyTorch multiplies them."""

    def read(self, data: Tensor, scale: Tensor, columns: int) -> Tensor:
        """Float32 [m, columns] of what ``store`` made of m rows, ``data`` [m, ...] and ``scale``
        [m] or empty."""
        ...


@dataclass(frozen=True)
class Weight:
    """[rows, columns]. ``data``: float32, bf16, fp16 or int8 [rows, columns], or packed rows uint8
    [rows, row bytes] of the form ``packed``, or [rows, ...] as the form ``plain`` has them.
    ``scale`` float32 [rows] of int8 rows, else empty.

    ``packed`` rows lie on the CPU, and only the compiled extension makes them.
    """

    data: Tensor
    columns: int
    packed: PackedFormat | None
    scale: Tensor
    plain: PlainFormat | None = None

    @property
    def rows(self) -> int:
        return int(self.data.shape[0])

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def code(self) -> int:
        """The ops' ``format``."""
        return DENSE if self.packed is None else self.packed.code

    @property
    def format(self) -> str:
        """Its name, for people."""
        if self.plain is not None:
            return self.plain.name
        return (
            str(self.data.dtype).removeprefix("torch.") if self.packed is None else self.packed.name
        )

    @property
    def compiled(self) -> bool:
        """Do the compiled CPU ops multiply it, with float32 sums and alike in every batch?"""
        known = EXTENSION.module is not None and self.plain is None
        return known and self.device.type == "cpu"

    def embed(self, ids: Tensor, scale: float | None = None) -> Tensor:
        """Float32 [n, columns]: rows ``ids`` int64 [n], times ``scale``. A half type rounds the
        scale and the product, as ``transformers`` does."""
        if self.plain is not None:
            some = self.take(ids)
            rows = self.plain.read(some.data, some.scale, self.columns)
        elif self.packed is not None:
            rows = ops.embed_rows(self.data, ids, self.code, self.columns)
        else:
            rows = self.data[ids]
        if scale is not None:
            rows = rows * torch.tensor(scale, dtype=rows.dtype)
        return rows.float()

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight.T (+ bias)``, float32 [n, rows]; see ``reference.linear``."""
        if self.plain is not None:
            parts = torch.arange(self.rows, device=self.device).split(_ROWS_AT_ONCE)
            y = torch.cat([x.float() @ self.embed(part).t() for part in parts], 1)
            return y if bias is None else y + bias.float()
        return ops.linear(x, self.data, bias, self.scale if self.scale.numel() else None, self.code)

    def float(self) -> Tensor:
        """Float32 [rows, columns]: a copy, for references and hashes."""
        if self.scale.numel() and self.plain is None:
            return self.data.float() * self.scale[:, None]
        return self.embed(torch.arange(self.rows, device=self.device))

    def take(self, rows: Tensor | slice) -> Weight:
        """The weight of some rows, in the order given (a slice stays a view)."""
        scale = self.scale[rows] if self.scale.numel() else self.scale
        return replace(self, data=self.data[rows], scale=scale)


def dense(data: Tensor, scale: Tensor | None = None) -> Weight:
    """Of a tensor [rows, columns] in its own dtype; int8 with the ``scale`` of its rows."""
    if scale is None:
        scale = torch.empty(0, dtype=torch.float32, device=data.device)
    return Weight(data, int(data.shape[1]), None, scale)


def joined(weights: Sequence[Weight]) -> Weight:
    """The rows of weights of one form, one after the other."""
    data = torch.cat([weight.data for weight in weights])
    return replace(weights[0], data=data, scale=torch.cat([weight.scale for weight in weights]))
