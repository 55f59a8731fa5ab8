"""Passes of one arena: captured as CUDA graphs, or run as they are where there is no GPU."""

from __future__ import annotations

from typing import Any

import torch

from dynaspec_cli.target.static.arena import Arena
from dynaspec_cli.target.static.step import Form, Model, step

WARM_UP = 2
"""Passes before a capture: libraries choose their kernels and workspaces in the first ones."""


class Graphs:
    """One graph a form. ``pool``: memory that all graphs of a target share, since what outlives a
    pass lies in the arena."""

    def __init__(self, model: Model, arena: Arena, pool: Any) -> None:
        self.arena = arena
        self._model = model
        self._pool = pool
        self._graphs: dict[Form, Any] = {}

    def run(self, form: Form) -> None:
        """One pass over what the arena holds."""
        if self._pool is None:
            step(self._model, self.arena, form)
            return
        if form not in self._graphs:
            self._graphs[form] = self._capture(form)
        with torch.cuda.device(self.arena.length.device):
            self._graphs[form].replay()

    def capture(self, form: Form) -> None:
        """Have the graph of a form before it is needed."""
        if self._pool is not None and form not in self._graphs:
            self._graphs[form] = self._capture(form)

    def _capture(self, form: Form) -> Any:
        """The arena's length is put back: what the passes before the capture wrote lies behind it
        and is written again."""
        length = self.arena.length.clone()
        device = length.device
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    step(self._model, self.arena, form)
                    self.arena.length.copy_(length)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                step(self._model, self.arena, form)
        return graph


def graph_pool(device: torch.device) -> Any:
    """A pool for ``Graphs``; None where nothing is captured."""
    captures = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.graph_pool_handle() if captures else None
