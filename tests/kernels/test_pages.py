"""Tensors on huge pages."""

from __future__ import annotations

import gc

import pytest
import torch

from dynaspec_cli.ops.pages import HugePages, give_back, huge_empty, on_huge_pages


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1 << 20, 3), (2049, 513)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_shape_and_use(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = huge_empty(shape, dtype)
    assert tuple(x.shape) == shape
    assert x.dtype == dtype
    assert x.is_contiguous()
    x.fill_(3)
    gc.collect()  # the memory lives as long as the tensor does
    assert torch.equal(x, torch.full(shape, 3, dtype=dtype))
    if x.nbytes >= 2 << 20:
        assert x.data_ptr() % (2 << 20) == 0


def test_copies() -> None:
    weights = [torch.randn(1500, 700).t(), torch.randn(7).bfloat16(), torch.empty(0), torch.ones(3)]
    copies = on_huge_pages(weights)
    for got, weight in zip(copies, weights, strict=True):
        assert got.is_contiguous()
        assert got.dtype == weight.dtype
        assert torch.equal(got, weight)
        assert got.numel() == 0 or got.data_ptr() % 64 == 0
    copies[1].zero_()
    assert torch.equal(copies[3], weights[3])
    assert bool(weights[1].any())


@pytest.mark.parametrize("chunk", [0, 1000, 8 << 20])
def test_neighbours_share_pages_and_no_bytes(chunk: int) -> None:
    room = HugePages(chunk)
    sizes = [[5, 0, 700], [64], [3 << 20, 1], [2 << 20], [6 << 20], []]
    parts = [part for group in sizes for part in room.parts(group)]
    assert [part.numel() for part in parts] == [size for group in sizes for size in group]
    for i, part in enumerate(parts):
        part.fill_(i)
    del room
    gc.collect()
    assert all(bool((part == i).all()) for i, part in enumerate(parts))
    assert all(part.data_ptr() % 64 == 0 for part in parts if part.numel())
    if chunk == 8 << 20:  # the second group goes on where the first ended
        assert parts[3].data_ptr() == parts[0].data_ptr() + 64 + 704


def test_giving_memory_back_harms_nothing() -> None:
    x = torch.ones(1 << 20)
    give_back()
    assert bool((x == 1).all())
