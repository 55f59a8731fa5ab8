"""The router beside the drafter's layer: on CUDA on a stream of its own, elsewhere in its place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class SideStream:
    """A second stream of ``device``; on a device without streams work is done at once."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)`` after what the main stream has been given so far, beside what it
        will be given next. ``join`` the result before using it."""
        if self._side is None:
            return function(*inputs)
        self._side.wait_stream(torch.cuda.current_stream(self._side.device))
        for x in inputs:
            if x.is_cuda:  # their memory must outlive the reading here
                x.record_stream(self._side)
        with torch.cuda.stream(self._side):
            return function(*inputs)

    def join(self, result: Tensor) -> Tensor:
        """``result`` of ``run`` for the main stream, which waits for the side (the host does
        not)."""
        if self._side is not None:
            main = torch.cuda.current_stream(self._side.device)
            main.wait_stream(self._side)
            result.record_stream(main)
        return result
