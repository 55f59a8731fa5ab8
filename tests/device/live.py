"""Bytes that a function holds at once beside what was there before: what a graph's pool takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.old: set[int] = set()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x.untyped_storage() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self.old |= {s._cdata for s in given if s._cdata not in self.held}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in self.old:
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        del given
        self.held = {key: held for key, held in self.held.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return out


def most_bytes(run: Callable[[], Any]) -> int:
    """At most at any time."""
    with torch.inference_mode(), _Live() as live:
        run()
    return live.most
