"""Shapes and dtypes of the compiled ops for ``torch.compile``, fake tensors and ``opcheck``.

The number of rows a union selects depends on data, so its blocks have a data-dependent length; on
CUDA, where asking for it would wait for the device, a fixed one (docs/internals/cuda.md).
Top-k ops are taken to be given at least k rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from dynaspec_cli.ops.formats import DENSE

Optional = Tensor | None
_CUDA_UNION_ROWS = 1 << 20  # bound on rows of a union without a head (csrc/cuda/bindings.cpp)
_CUDA_BEST = 64  # DYNASPEC_MAX_TOPK (csrc/cuda/launch.h)


def _linear(
    x: Tensor, weight: Tensor, bias: Optional, scale: Optional, format: int = DENSE
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.float32)


def _check_k(hidden: Tensor, k: int | torch.SymInt) -> None:
    if hidden.device.type == "cuda" and k > _CUDA_BEST:
        raise ValueError(f"k: expected at most {_CUDA_BEST} on CUDA, got {k}")


def _best(hidden: Tensor, k: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor]:
    n = hidden.shape[0]
    return (
        hidden.new_empty((n, k), dtype=torch.float32),
        hidden.new_empty((n, k), dtype=torch.int64),
        hidden.new_empty((n,), dtype=torch.float32),
    )


def _union(
    cluster_scores: Tensor,
    cluster_offsets: Tensor,
    extra_rows: Tensor,
    core_rows: int,
    budget: int,
    rows: int = _CUDA_UNION_ROWS,
) -> tuple[Tensor, Tensor]:
    if cluster_offsets.device.type == "cuda":  # a buffer of fixed capacity, padded
        clusters = cluster_scores.shape[1] if cluster_scores.numel() else 0
        parts = clusters + extra_rows.shape[0] + (core_rows > 0)
        count: int | torch.SymInt = max(1, min(parts, (rows + 1) // 2))
    else:
        count = torch.library.get_ctx().new_dynamic_size()
    blocks = cluster_offsets.new_empty((count, 2), dtype=torch.int32)
    return blocks, cluster_offsets.new_empty((), dtype=torch.int64)


def _topk(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    blocks: Tensor,
    k: int,
    temperature: float,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_k(hidden, k)
    return _best(hidden, k)


def _log_probs(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    blocks: Tensor,
    temperature: float,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    log_q, _, lse = _best(hidden, size)
    return log_q, hidden.new_empty((size,), dtype=torch.int64), lse


def _log_probs_padded(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    blocks: Tensor,
    width: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    log_q, _, lse = _best(hidden, width)
    return log_q, hidden.new_empty((width,), dtype=torch.int64), lse


def _draft_head(
    hidden: Tensor,
    head: Tensor,
    head_scale: Tensor,
    row_ids: Tensor,
    cluster_scores: Tensor,
    cluster_offsets: Tensor,
    extra_rows: Tensor,
    core_rows: int,
    budget: int,
    k: int,
    temperature: float,
    format: int = DENSE,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    blocks, size = _union(
        cluster_scores, cluster_offsets, extra_rows, core_rows, budget, head.shape[0]
    )
    _check_k(hidden, k)
    return (*_best(hidden, k), size, blocks)


def _router(
    features: Tensor, tokens_embedding: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    return features.new_empty((features.shape[0], w2.shape[0]), dtype=torch.float32)


def _embed(weight: Tensor, ids: Tensor, format: int, columns: int) -> Tensor:
    return weight.new_empty((ids.shape[0], columns), dtype=torch.float32)


def _pack(blocks: Tensor, format: int, columns: int, out: Tensor) -> None:
    return None


def on_one_device(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """The fake kernel, refusing tensors of several devices as the kernels do (empty ones may lie
    anywhere)."""

    @functools.wraps(function)
    def checked(*args: object, **kwargs: object) -> object:
        tensors: list[Tensor] = []
        for value in (*args, *kwargs.values()):
            several = value if isinstance(value, list | tuple) else [value]
            tensors += [t for t in several if isinstance(t, Tensor)]
        if len({t.device for t in tensors}) > 1:
            devices = sorted({str(t.device) for t in tensors if t.numel()})
            if len(devices) > 1:
                got = " and ".join(devices)
                raise RuntimeError(f"{name}: expected tensors on one device, got {got}")
        return function(*args, **kwargs)

    return checked


def register() -> None:
    """Registers the fake kernels; the ops must have been loaded."""
    fakes: dict[str, Callable[..., object]] = {
        "linear": _linear,
        "embed_rows": _embed,
        "pack_blocks": _pack,
        "shortlist_union": _union,
        "shortlist_topk": _topk,
        "shortlist_log_probs": _log_probs,
        "draft_head": _draft_head,
        "router_clusters": _router,
    }
    if hasattr(torch.ops.dynaspec, "shortlist_log_probs_padded"):  # builds with CUDA
        fakes["shortlist_log_probs_padded"] = _log_probs_padded
    for name, function in fakes.items():
        torch.library.register_fake(f"dynaspec::{name}", on_one_device(name, function))
