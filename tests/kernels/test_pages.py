"""Tensors on huge pages."""

from __future__ import annotations

import gc

import pytest
import torch

from dynaspec_cli.ops.pages import huge_empty, on_huge_pages


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
