"""The commit of a path on a GPU against the reference."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli import ops
from dynaspec_cli.ops import reference_tree as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kv_commit(cuda: torch.device, dtype: torch.dtype) -> None:
    caches = [torch.randn(200, 2, width).to(dtype) for width in (64, 33)] * 30
    rows = torch.tensor([0, 1, 5, 6, 40])
    on_device = [c.to(cuda) for c in caches]
    padded = torch.cat([rows, torch.full((3,), -1)])
    ops.kv_commit(on_device, torch.tensor([100], device=cuda), padded.to(cuda))
    expected = [c.clone() for c in caches]
    reference.kv_commit(expected, torch.tensor([100]), rows)
    for a, b in zip(on_device, expected, strict=True):
        assert torch.equal(a.cpu(), b)
