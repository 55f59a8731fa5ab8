"""A weight format: the sign of every value, and a row's mean magnitude. No kernel knows it, so it
says how its rows are read, and PyTorch multiplies them."""

from __future__ import annotations

from torch import Tensor

from dynaspec_cli.weights.weight import Weight


class Signs:
    name = "signs"

    def store(self, rows: Tensor) -> Weight:
        """Float32 [m, columns] -> bool [m, columns] and float32 [m]."""
        return Weight(rows > 0, rows.shape[1], None, rows.abs().mean(1), plain=self)

    def read(self, data: Tensor, scale: Tensor, columns: int) -> Tensor:
        """Float32 [m, columns]."""
        return (2.0 * data.float() - 1.0) * scale[:, None]


SIGNS = Signs()
"""What the entry point names."""
