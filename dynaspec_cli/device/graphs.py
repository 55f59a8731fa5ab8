"""Rounds of one request's memory: captured as CUDA graphs, or run as they are elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dynaspec_cli.device.context import Context, add
from dynaspec_cli.device.drafter import Memory
from dynaspec_cli.device.round import Inputs, Outputs, Round

WARM_UP = 2
"""Rounds before a capture: libraries choose their kernels and workspaces in the first ones."""


class Runner:
    """Runs rounds over a memory and a context, which it keeps up to date. A round that has run
    before is one graph launch on CUDA. ``pool``: memory that graphs share, since none reads what
    another left."""

    def __init__(self, memory: Memory, context: Context, pool: Any = None) -> None:
        self.memory, self.context = memory, context
        self._pool = pool
        self._captured: dict[Round, _Captured] = {}

    @torch.inference_mode()
    def forget(self) -> None:
        """Empty the context."""
        self.context.seen.zero_()
        self.context.rows.fill_(-1)
        self.context.clock.zero_()

    @torch.inference_mode()
    def mention(self, rows: Tensor) -> None:
        """Take in rows int64 [m] of the context before a round."""
        new = add(self.context, rows.to(self.context.seen.device))
        for kept, value in zip(self.context, new, strict=True):
            kept.copy_(value)

    @torch.inference_mode()
    def run(self, what: Round, inputs: Inputs) -> Outputs:
        """Inputs on the host or the device. The outputs hold until the next run."""
        device = self.memory.k[0].device
        if device.type != "cuda" or not torch.cuda.is_available():
            given = Inputs(*(x.to(device) for x in inputs))
            out = what(given, self.memory, self.context)
            self.context = out.context
            return out
        if what not in self._captured:
            self._captured[what] = _Captured(what, inputs, self.memory, self.context, self._pool)
        captured = self._captured[what]
        captured.take(inputs)
        captured.graph.replay()
        return captured.outputs


class _Captured:
    """One round as a graph, with the tensors that it reads and writes. The context's are every
    round's, so the graph ends by writing them."""

    def __init__(
        self, what: Round, inputs: Inputs, memory: Memory, context: Context, pool: Any
    ) -> None:
        device = memory.k[0].device
        self.inputs = Inputs(*(x.to(device, copy=True) for x in inputs))
        self._pinned = [None if x.is_cuda else x.pin_memory() for x in inputs]
        before: Any = tree_map(Tensor.clone, context)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                what(self.inputs, memory, context)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.outputs = what(self.inputs, memory, context)
            for kept, new in zip(context, self.outputs.context, strict=True):
                kept.copy_(new)
        for kept, old in zip(context, before, strict=True):
            kept.copy_(old)

    def take(self, inputs: Inputs) -> None:
        """Copy the inputs, those of the host through page-locked memory: nothing waits. The host
        has read the last round's outputs, so the last copies are done."""
        for there, pinned, here in zip(self.inputs, self._pinned, inputs, strict=True):
            if pinned is None:
                there.copy_(here)
            else:
                pinned.copy_(here)
                there.copy_(pinned, non_blocking=True)
