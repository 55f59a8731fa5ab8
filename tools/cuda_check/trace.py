"""Runs the draft and verify steps on fake CUDA tensors: no GPU is needed, nothing is computed.

An operation that mixes devices, reads a value back, or has a result whose size depends on data
raises, and so fails the check. Waits that cannot be avoided are named in sync_guard.py.

    python tools/cuda_check/trace.py     (with an extension built by DYNASPEC_BUILD=cuda)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine_steps import engine_steps
from streams import pretended_streams
from sync_guard import HostSyncError, SyncGuard

from dynaspec_cli import ops
from dynaspec_cli.ops.extension import EXTENSION

OPS = (
    "shortlist_union",
    "shortlist_topk",
    "shortlist_log_probs",
    "shortlist_log_probs_padded",
    "draft_head",
    "kv_commit",
)

VOCAB, DIM, CLUSTERS, WIDTH, BEST, LAYERS = 4096, 64, 128, 6, 8, 2


def expect(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    if tuple(x.shape) != shape or x.dtype != dtype or x.device.type != "cuda":
        raise AssertionError(
            f"{what}: expected {dtype} {shape} on cuda, "
            f"got {x.dtype} {tuple(x.shape)} on {x.device}"
        )


def draft_step(
    head: Tensor, hidden: Tensor, router: list[Tensor], offsets: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Router, selection and shortlisted head for one frontier; (log_q, ids) [w, k]."""
    empty, no_ids = head.new_empty(0, dtype=torch.float32), offsets.new_empty(0)
    scores = ops.router_clusters(hidden, hidden, *router)
    expect(scores, (hidden.shape[0], CLUSTERS), torch.float32, "router scores")
    log_q, ids, lse, size, blocks = ops.draft_head(
        hidden, head, empty, no_ids, scores, offsets, context, 64, 1024, BEST, 1.0
    )
    expect(log_q, (hidden.shape[0], BEST), torch.float32, "log_q")
    expect(ids, (hidden.shape[0], BEST), torch.int64, "ids")
    expect(blocks, (CLUSTERS + context.numel() + 1, 2), torch.int32, "blocks")
    again, _ = ops.shortlist_union(scores, offsets, context, 64, 1024)
    whole, tokens, _ = torch.ops.dynaspec.shortlist_log_probs_padded(
        hidden, head, empty, no_ids, again, 1200, 1.0
    )
    expect(whole, (hidden.shape[0], 1200), torch.float32, "whole distribution")
    expect(tokens, (1200,), torch.int64, "its tokens")
    expect(
        ops.linear(lse[:, None].expand(-1, DIM), head[:32], None, None),
        (hidden.shape[0], 32),
        torch.float32,
    )
    del size
    return log_q, ids


def device_steps(dtype: torch.dtype) -> None:
    """The ops with CUDA kernels: two draft steps, commit."""
    cuda = torch.device("cuda")
    head = torch.randn(VOCAB, DIM, device=cuda, dtype=dtype)
    router = [
        torch.randn(*s, device=cuda) for s in ((32, 2 * DIM), (32,), (CLUSTERS, 32), (CLUSTERS,))
    ]
    offsets = torch.arange(0, VOCAB + 1, VOCAB // CLUSTERS, device=cuda, dtype=torch.int32)
    context = torch.zeros(50, device=cuda, dtype=torch.int32)
    hidden = torch.randn(1, DIM, device=cuda)
    for _ in range(3):
        log_q, ids = draft_step(head, hidden, router, offsets, context)
        best = torch.topk(log_q.flatten(), WIDTH).indices
        hidden = head[ids.flatten()[best]].float()
    path = torch.full((13,), -1, device=cuda)
    caches = [torch.empty(128, 2, 16, device=cuda, dtype=dtype) for _ in range(2 * LAYERS)]
    ops.kv_commit(caches, torch.full((1,), 40, device=cuda), path)


def must_fail(what: str, step: Callable[[], object]) -> None:
    """The check itself is checked: these would pass silently if it saw nothing."""
    try:
        step()
    except (HostSyncError, RuntimeError):
        return
    raise AssertionError(f"the trace did not notice {what}")


def check_the_checks() -> None:
    x = torch.randn(4, device="cuda")
    must_fail("a value read back", lambda: x.sum().item())
    must_fail("a list read back", lambda: x.tolist())
    must_fail("a copy to the host", lambda: x.cpu())
    with torch.inference_mode():
        must_fail("a value read back in inference mode", lambda: x.sum().item())
        must_fail("a copy to the host in inference mode", lambda: x.to("cpu"))
    must_fail("nonzero", lambda: x.nonzero())
    must_fail("indexing by a mask", lambda: x[x > 0])
    must_fail("mixed devices", lambda: x + torch.randn(4))
    must_fail(
        "mixed devices in an op",
        lambda: ops.linear(torch.randn(1, 4, device="cuda"), torch.randn(3, 4), None, None).add_(
            x[:3]
        ),
    )


def main() -> int:
    if EXTENSION.module is None or not EXTENSION.has_cuda:
        print(
            f"cuda-check: expected an extension with CUDA kernels, got: {EXTENSION.reason}",
            file=sys.stderr,
        )
        return 1
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = [name for name in OPS if not has(f"dynaspec::{name}", "CUDA")]
    if missing:
        print(f"cuda-check: no CUDA kernel is registered for {', '.join(missing)}", file=sys.stderr)
        return 1
    print(
        f"cuda-check: extension imported in torch {torch.__version__} without a GPU, "
        f"{len(OPS)} CUDA ops registered"
    )
    with FakeTensorMode(allow_non_fake_inputs=True), pretended_streams(), SyncGuard() as guard:
        check_the_checks()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            device_steps(dtype)
        print(
            "cuda-check: draft and verify ops traced on fake CUDA tensors: no host sync, "
            "no data-dependent shape"
        )
        for name in engine_steps():
            print(f"cuda-check: traced {name}")
    for (file, function), reason in guard.met.items():
        print(f"cuda-check: named wait: {file}: {function}: {reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
