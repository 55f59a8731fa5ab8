"""The ops that have CUDA kernels, on the pretended GPU: done by the CPU ones, in the form that the
CUDA ones return (padded, docs/internals/cuda.md)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pretend import DeviceTensor, MixedDevicesError, check_streams, note_op, to_host
from streams import replaced
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from dynaspec_cli import ops
from dynaspec_cli.device import drafter as device_drafter
from dynaspec_cli.device import head as device_head
from dynaspec_cli.device.kernels import reference
from dynaspec_cli.ops import head as head_ops
from dynaspec_cli.ops import tree as tree_ops
from dynaspec_cli.target.static import step as static_step


def _device_op(name: str, function: Callable[..., Any], launches: int = 1) -> Callable[..., Any]:
    """``function``, a CPU op, for tensors of either device, all of one."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, DeviceTensor)]
        if not there:
            return function(*args, **kwargs)
        if any(t.numel() for t in tensors if not isinstance(t, DeviceTensor)):
            raise MixedDevicesError(f"{name}: expected tensors on one device")
        check_streams(name, there)
        note_op(name, tensors, launches)
        with torch.utils._python_dispatch._disable_current_modes():
            out = function(*tree_map(to_host, args), **tree_map(to_host, kwargs))
        return tree_map(lambda t: DeviceTensor(t) if isinstance(t, Tensor) else t, out)

    return run


def _padded(blocks: Tensor, clusters: int, extras: int, rows: int) -> Tensor:
    """Blocks as the CUDA op returns them: one place for every block there can be, unused ones empty
    at the end."""
    capacity = max(1, min(clusters + extras + 1, (rows + 1) // 2))
    padding = blocks.new_full((max(0, capacity - len(blocks)), 2), rows)
    return torch.cat([blocks, padding])


def _columns(log_q: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """k columns always, as the CUDA ops have them."""
    missing = (0, k - ids.shape[1])
    pad = torch.nn.functional.pad
    return pad(log_q, missing, value=-torch.inf), pad(ids, missing, value=-1)


def _topk(*args: Any) -> tuple[Tensor, ...]:
    log_q, ids, lse = head_ops.shortlist_topk(*args)
    return *_columns(log_q, ids, args[5]), lse


def _union(*args: Any) -> tuple[Tensor, Tensor]:
    blocks, size = head_ops.shortlist_union(*args)
    _, offsets, extra, _, _ = args
    return _padded(blocks, len(offsets) - 1, len(extra), int(offsets[-1])), size


def _draft_head(*args: Any) -> tuple[Tensor, ...]:
    log_q, ids, lse, size, blocks = head_ops.draft_head(*args)
    head, offsets, extra = args[1], args[5], args[6]
    blocks = _padded(blocks, len(offsets) - 1, len(extra), len(head))
    return *_columns(log_q, ids, args[9]), lse, size, blocks


@contextmanager
def triton_ops() -> Iterator[None]:
    """Triton's kernels, each of which is two launches: done by their references."""
    head = _device_op("head_topk", reference.head_topk, 2)
    attention = _device_op("tree_attention", reference.tree_attention, 2)
    stand_ins: dict[tuple[Any, str], Any] = {
        (device_head, "head_topk"): head,
        (device_drafter, "tree_attention"): attention,
        (static_step, "tree_attention"): attention,
    }
    with replaced(stand_ins):
        yield


@contextmanager
def device_ops() -> Iterator[None]:
    """The ops with CUDA kernels, taking tensors of the pretended GPU."""
    stand_ins: dict[str, Callable[..., Any]] = {
        "shortlist_topk": _topk,
        "shortlist_log_probs": head_ops.shortlist_log_probs,
        "shortlist_union": _union,
        "draft_head": _draft_head,
        "kv_commit": tree_ops.kv_commit,
    }
    with replaced({(ops, name): _device_op(name, op) for name, op in stand_ins.items()}):
        yield
