"""Kernels of the draft round: Triton's on a GPU where Triton is there (it comes with PyTorch's CUDA
builds), else their references. Both have one name and one meaning (``reference.py``).
"""

from __future__ import annotations

from functools import cache

from torch import Tensor

from dynaspec_cli.device.kernels import reference
from dynaspec_cli.device.kernels.reference import SPLITS


@cache
def has_triton() -> bool:
    """Can Triton's kernels be imported?"""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda and has_triton()


def head_topk(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    count: Tensor,
    k: int,
    temperature: float,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``reference.head_topk``; int8 rows have no Triton kernel."""
    if _on_gpu(hidden) and (scale is None or not scale.numel()):
        from dynaspec_cli.device.kernels.triton_head import head_topk as on_gpu

        return on_gpu(hidden, weight, rows, count, k, temperature)
    return reference.head_topk(hidden, weight, rows, count, k, temperature, scale)


def tree_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    depth: Tensor,
    ancestors: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    splits: int = SPLITS,
) -> Tensor:
    """See ``reference.tree_attention``."""
    args = (q, keys, values, length, depth, ancestors, scale, window, softcap, splits)
    if _on_gpu(q):
        from dynaspec_cli.device.kernels.triton_attention import tree_attention as on_gpu

        return on_gpu(*args)
    return reference.tree_attention(*args)
