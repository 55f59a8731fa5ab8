"""Tensors on huge pages, for weights that every pass streams."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_HUGE = 2 << 20
_LINE = 64
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux alone


def huge_empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor on 2 MiB pages where the system gives them, on ordinary ones
    elsewhere. Copy a weight into it once: with 4 KiB pages the walks of the page table cost a
    memory-bound pass a tenth to a fifth of its time.

    The pages must be asked for before they are first touched, hence an allocation of its own.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE or _ADVICE is None:
        return torch.empty(shape, dtype=dtype)
    # Private, since shared memory has huge pages of its own; freed with the last tensor on it.
    pages = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # no transparent huge pages: ordinary ones serve as well
        pages.madvise(_ADVICE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE
    return whole[start : start + size].view(dtype).view(shape)


def huge_parts(sizes: Sequence[int]) -> list[Tensor]:
    """Uninitialised uint8 [size] CPU tensors, one after another in one block of huge pages, each at
    a border of 64 bytes."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // _LINE) * _LINE
    block = huge_empty((end,), torch.uint8)
    return [block[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def on_huge_pages(weights: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies of CPU tensors, one after another in one block of huge pages."""
    places = huge_parts([weight.nbytes for weight in weights])
    return [
        place.view(weight.dtype).view(weight.shape).copy_(weight)
        for weight, place in zip(weights, places, strict=True)
    ]
