"""The head by slices gives what the whole head gives, for any number of slices, ties included."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.sharded.head import ShardedHead, slice_bounds
from dynaspec_cli.weights.weight import dense


class Threads:
    """``Ranks`` as threads of this process: collectives over a shared list."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._parts: list[Any] = [None] * world
        self._all = threading.Barrier(world, timeout=20)
        self._own = threading.local()

    @property
    def rank(self) -> int:
        return self._own.rank

    def run(self, call: Callable[[], Any]) -> Any:
        """``call`` on all ranks; rank 0's result."""
        results: list[Any] = [None] * self.world

        def work(rank: int) -> None:
            self._own.rank = rank
            results[rank] = call()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return results[0]

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self._parts[self.rank] = tensor.clone()
        self._all.wait()
        found = [part.clone() for part in self._parts]
        self._all.wait()
        return found

    def spread(self, tensor: Tensor) -> Tensor:
        found = self._exchange(tensor)
        assert all(part.shape == found[0].shape and part.dtype == found[0].dtype for part in found)
        return tensor.copy_(found[0])

    def gather(self, tensor: Tensor) -> list[Tensor]:
        found = self._exchange(tensor)
        assert all(part.shape == found[0].shape for part in found)
        return found if self.rank == 0 else []

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchange(tensor)).sum(0)


def told(operation: str, **_: Any) -> Any:
    return contextlib.nullcontext()


@pytest.mark.parametrize(("rows", "world"), [(40, 2), (41, 2), (41, 3), (9, 4), (5, 4), (64, 8)])
@pytest.mark.parametrize("kind", ["plain", "bias", "softcap", "ties", "bfloat16"])
def test_it_gives_what_the_whole_head_gives(rows: int, world: int, kind: str) -> None:
    g = torch.Generator().manual_seed(rows * world)
    weight = torch.randn(rows, 8, generator=g)
    if kind == "ties":
        weight[rows // 2 : 2 * (rows // 2)] = weight[: rows // 2]
    if kind == "bfloat16":
        weight = weight.bfloat16()
    bias = torch.randn(rows, generator=g) if kind == "bias" else None
    shape = (0.5, 3.0) if kind == "softcap" else (1.0, None)
    whole = LMHead(dense(weight), bias, *shape)
    hidden = torch.randn(6, 8, generator=g)
    hidden = hidden.to(weight.dtype)
    ranks = Threads(world)

    def on_all(ask: Callable[[ShardedHead, Tensor], Any]) -> Any:
        def work() -> Any:
            begin, end = slice_bounds(rows, ranks.rank, world)
            part = LMHead(
                dense(weight[begin:end]), None if bias is None else bias[begin:end], *shape
            )
            head = ShardedHead(part, rows, ranks, told)  # type: ignore[arg-type]
            # What the others hold is overwritten by what rank 0 spreads.
            return ask(head, hidden.clone() if ranks.rank == 0 else torch.zeros_like(hidden))

        return ranks.run(work)

    assert torch.allclose(on_all(lambda h, x: h.logits(x)), whole.logits(hidden), atol=1e-6)
    logits = whole.logits(hidden)
    for k in (4, rows) if kind == "ties" else (1, 3, rows):
        found = on_all(lambda h, x, k=k: h.leaders(x, k))
        expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        if kind == "ties":  # of tied tokens the lowest ids, in their order
            assert torch.equal(found[:, 0], logits.argmax(-1))
            assert torch.equal(logits.gather(1, found), logits.gather(1, expected))
        else:
            assert torch.equal(found, expected)
            assert torch.equal(found, whole.leaders(hidden, k))
    ids = torch.arange(6) * (rows - 1) // 5
    assert torch.allclose(on_all(lambda h, x: h.at(x, ids)), whole.at(hidden, ids), atol=1e-5)
    assert torch.equal(on_all(lambda h, x: h.weight).data, weight)


def test_slices_cover_the_vocabulary_in_its_order() -> None:
    for rows in (1, 7, 8, 400):
        for world in (1, 2, 3, 8):
            bounds = [slice_bounds(rows, rank, world) for rank in range(world)]
            ids = [i for begin, end in bounds for i in range(begin, end)]
            assert ids == list(range(rows))


def test_a_slice_that_is_not_finite_is_an_error_at_rank_0() -> None:
    ranks = Threads(2)
    weight = torch.randn(10, 4)
    weight[7] = torch.nan
    said = []

    def work() -> None:
        begin, end = slice_bounds(10, ranks.rank, 2)
        head = ShardedHead(LMHead(dense(weight[begin:end])), 10, ranks, told)  # type: ignore[arg-type]
        try:
            head.leaders(torch.ones(2, 4), 1)
        except DynaSpecError as error:
            said.append((ranks.rank, str(error)))

    ranks.run(work)
    assert [rank for rank, _ in said] == [0]
    assert "NaN" in said[0][1] or "finite" in said[0][1]
