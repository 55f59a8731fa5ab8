"""Tensors on huge pages, for weights that every pass streams."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_HUGE = 2 << 20
_LINE = 64
RESERVED = 64 << 20
"""Address space at a time for a model's weights; what is never touched takes no memory."""
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


class HugePages:
    """Room for the weights of one model, made one after another. Neighbours share the pages at
    their borders: a layer of 2.1 MB on pages of its own would hold 4."""

    def __init__(self, chunk: int = 0) -> None:
        """``chunk``: bytes that are reserved at a time, at least."""
        self._chunk = chunk
        self._room = torch.empty(0, dtype=torch.uint8)

    def parts(self, sizes: Sequence[int]) -> list[Tensor]:
        """Uninitialised uint8 [size] CPU tensors, one after another, each at a border of 64
        bytes."""
        whole = [-(-size // _LINE) * _LINE for size in sizes]
        if sum(whole) > self._room.numel():
            self._room = huge_empty((max(sum(whole), self._chunk),), torch.uint8)
        *cut, self._room = self._room.split([*whole, self._room.numel() - sum(whole)])
        return [place[:size] for place, size in zip(cut, sizes, strict=True)]


def on_huge_pages(weights: Sequence[Tensor], room: HugePages | None = None) -> list[Tensor]:
    """Contiguous copies of CPU tensors, one after another in ``room`` (None: of their own)."""
    places = (room or HugePages()).parts([weight.nbytes for weight in weights])
    return [
        place.view(weight.dtype).view(weight.shape).copy_(weight)
        for weight, place in zip(weights, places, strict=True)
    ]


def give_back() -> None:
    """Hand memory that was freed, in any thread's part of the heap, back to the system, where the C
    library keeps it (glibc): after what a load leaves, and between requests. Rows of logits are
    megabytes each, of ever other numbers of rows, so that what a request leaves is seldom what the
    next one needs: with a vocabulary of 262,144 a process grows to twice its size within a hundred
    requests, none of it in use. Takes milliseconds."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
