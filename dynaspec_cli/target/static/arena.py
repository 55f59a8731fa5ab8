"""The memory of one sequence, allotted once: what graphs read and write lies at fixed places."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynaspec_cli.target.native_spec import NativeSpec
from dynaspec_cli.target.rope import RotaryTable
from dynaspec_cli.target.static.sizes import MOST_ROWS, RANKED, SCRATCH_ROWS
from dynaspec_cli.unread_tree import UnreadDraws

PARAMETERS = 4
"""Numbers of a request's sampling: temperature, top-k, top-p, min-p."""


@dataclass(frozen=True)
class DrawsShape:
    """Of the draws of a pass (``UnreadDraws``): ``rows`` of the pass, ``count`` draws at most,
    ``columns`` of q."""

    rows: int
    count: int
    widths: tuple[int, ...]
    columns: int
    most: int
    replacement: bool

    def room(self, device: torch.device) -> UnreadDraws:
        """No draws."""
        law = torch.full((self.rows,), -1, device=device)
        row = torch.full((self.count,), -1, device=device)
        ids = torch.full((len(self.widths), self.columns), -1, device=device)
        q = torch.zeros(sum(self.widths), self.columns, device=device)
        column = torch.zeros_like(row)
        return UnreadDraws(
            row, column, law, ids, q, self.widths, self.most, self.replacement, False
        )


@dataclass(eq=False)
class Arena:
    """``keys`` and ``values`` [layers, capacity + SCRATCH_ROWS, kv_heads, head_dim], keys after
    rotation: rows 0 .. ``length`` are committed and row j has position j, those of a tree follow,
    and what padding writes goes behind ``capacity``. ``length`` int64 [1].

    ``tree`` int64 [1 + 2 n]: rows of a tree, tokens, parents, n the rows of the pass (feed.py);
    ``draws``: how its children were drawn, by shape. ``chance`` float64 [PARAMETERS + n + 1]: a
    request's sampling, then uniforms. ``result`` int64 (``Result``). ``features`` and ``hidden``
    float32 [MOST_ROWS, d], ``taps`` by request. ``turns``: cos and sin float32 [positions,
    head_dim] of each rotary table.
    """

    capacity: int
    keys: Tensor
    values: Tensor
    length: Tensor
    tree: Tensor
    chance: Tensor
    result: Tensor
    features: Tensor
    hidden: Tensor
    taps: dict[int, Tensor]
    turns: dict[str, tuple[Tensor, Tensor]]
    pinned: list[Tensor]
    """``tree``, ``chance`` and what comes back in the host's memory, page-locked on CUDA."""
    draws: dict[DrawsShape, UnreadDraws] = field(default_factory=dict)

    @staticmethod
    def new(
        spec: NativeSpec,
        tables: dict[str, RotaryTable],
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Arena:
        shape = spec.shapes[0]
        rows = capacity + SCRATCH_ROWS
        size = (len(spec.shapes), rows, shape.num_kv_heads, shape.head_dim)
        positions = torch.arange(rows)
        sizes = (1 + 2 * MOST_ROWS, PARAMETERS + MOST_ROWS + 1, Result.size(MOST_ROWS))
        kinds = (torch.int64, torch.float64, torch.int64)
        pinned = [_of_host(n, kind, device) for n, kind in zip(sizes, kinds, strict=True)]
        tree, chance, result = (
            torch.zeros(n, dtype=kind, device=device) for n, kind in zip(sizes, kinds, strict=True)
        )
        return Arena(
            capacity,
            # Zeros: what is not seen is multiplied by 0, and 0 times NaN were NaN.
            torch.zeros(size, dtype=dtype, device=device),
            torch.zeros(size, dtype=dtype, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            tree,
            chance,
            result,
            torch.zeros(MOST_ROWS, spec.hidden_size, device=device),
            torch.zeros(MOST_ROWS, spec.hidden_size, device=device),
            {},
            {
                name: tuple(part.to(device) for part in table.rows(positions))  # type: ignore[misc]
                for name, table in tables.items()
            },
            pinned,
        )

    def tap(self, number: int) -> Tensor:
        """Float32 [MOST_ROWS, d]: where the residual stream entering a layer is kept."""
        if number not in self.taps:
            self.taps[number] = torch.zeros_like(self.features)
        return self.taps[number]

    def draws_of(self, shape: DrawsShape) -> UnreadDraws:
        """Where the draws of that shape lie."""
        if shape not in self.draws:
            self.draws[shape] = shape.room(self.tree.device)
        return self.draws[shape]

    def landing(self, size: int) -> Tensor:
        """int64 [size] in the host's memory, for what comes back."""
        if self.pinned[2].numel() < size:
            self.pinned[2] = _of_host(size, torch.int64, self.tree.device)
        return self.pinned[2][:size]

    def layers(self) -> list[Tensor]:
        """Every layer's keys, then its values."""
        return [*self.keys.unbind(0), *self.values.unbind(0)]

    def scratch(self, number: Tensor) -> Tensor:
        """Cache rows int64 [n] for what padding rows int64 [n] write."""
        return self.capacity + number % SCRATCH_ROWS

    def forget(self, length: int) -> None:
        """Clear the caches behind ``length`` rows: a failed pass may have left NaN there."""
        for cache in (self.keys, self.values):
            cache.narrow(1, length, cache.shape[1] - length).zero_()
        self.length.fill_(length)


def _of_host(size: int, kind: torch.dtype, device: torch.device) -> Tensor:
    lock = device.type == "cuda" and torch.cuda.is_available()
    return torch.zeros(size, dtype=kind, pin_memory=lock)


@dataclass(frozen=True)
class Result:
    """What comes to the host: ``path`` the accepted rows, ``bonus`` the token behind them,
    ``sound``: were all logits numbers; ``used`` uniforms; ``ranked`` int64 [n, RANKED]: the best
    tokens of each row."""

    path: Tensor
    bonus: int
    sound: bool
    used: int
    ranked: Tensor

    @staticmethod
    def size(rows: int) -> int:
        return 4 + rows + rows * RANKED

    @staticmethod
    def read(data: Tensor, rows: int, count: int) -> Result:
        """From int64 [size] on the host of a pass of ``rows`` rows, ``count`` of them real."""
        size, bonus, sound, used = data[:4].tolist()
        path = data[4 : 4 + size].clone()
        ranked = data[4 + rows : 4 + rows + rows * RANKED].view(rows, RANKED)
        return Result(path, bonus, bool(sound), used, ranked[:count].clone())
