"""What a CUDA graph asks of a function: no value read back, no copy from the host, shapes that do
not follow data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {
    "_local_scalar_dense": "a value is read back",
    "nonzero": "a size depends on data",
    "masked_select": "a size depends on data",
    "_unique2": "a size depends on data",
    "unique_dim": "a size depends on data",
    "repeat_interleave": "a size depends on data",
    "bincount": "a size depends on data",
    "lift_fresh": "a tensor is made from numbers of the host",
    "is_nonzero": "a value is read back",
    "equal": "a value is read back",
}


class NotCapturableError(AssertionError):
    """It could not be captured in a graph."""


class Recorder(TorchDispatchMode):
    """Notes every operation with the shapes of its arguments and results; refuses what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        # A single number may be an operand wherever it lies.
        if name in WAITS and not (name == "lift_fresh" and tensors[0].dim() == 0):
            raise NotCapturableError(f"{name}: {WAITS[name]}")
        if name in ("index", "index_put", "index_put_"):
            masks = [x for x in tensors[1:] if x.dtype == torch.bool]
            if masks and name == "index":
                raise NotCapturableError("index by a mask: a size depends on data")
        out = func(*args, **(kwargs or {}))
        tensors += [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        numbers = [x for x in tree_leaves((args, kwargs)) if isinstance(x, (int, float, bool))]
        self.seen.append((name, (*(tuple(x.shape) for x in tensors), *numbers)))
        return out


def recorded(run: Callable[[], Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """The operations of ``run``; raises NotCapturableError."""
    with Recorder() as recorder:
        run()
    return recorder.seen
