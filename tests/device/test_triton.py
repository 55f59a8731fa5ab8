"""Triton's kernels in its interpreter against their references. It needs Triton, which comes with
PyTorch's CUDA builds, and TRITON_INTERPRET=1 (make triton-check)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynaspec_cli.device.kernels import reference

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the interpreter is off: TRITON_INTERPRET=1", allow_module_level=True)

from triton.runtime import interpreter

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.device import kernels
from dynaspec_cli.device.kernels import triton_attention, triton_head
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.target.static import sizes

from .parts import PROMPT, a_target

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bf16 as its bits, and multiplies those: widen them first."""
    dot = interpreter.InterpreterBuilder.create_dot

    def widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, *(_widened(x) for x in (a, b)), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened)


def _widened(x: Any) -> Any:
    if x.data.dtype != np.uint16:
        return x
    wide = (x.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(wide, interpreter.tl.float32)


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    # Both sum in float32, in orders of their own; half factors are the same.
    atol = 2e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(got, want, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("w", "d", "count", "capacity", "k"),
    [(1, 64, 200, 256, 10), (10, 72, 130, 130, 4), (3, 40, 5, 90, 8), (17, 64, 700, 900, 1)],
)
def test_head_topk(
    monkeypatch: pytest.MonkeyPatch,
    w: int,
    d: int,
    count: int,
    capacity: int,
    k: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(triton_head, "PROGRAMS", 5)  # several tiles a program
    g = torch.Generator().manual_seed(w * d + k)
    hidden, weight = torch.randn(w, d, generator=g), torch.randn(1000, d, generator=g).to(dtype)
    rows = torch.randperm(1000, generator=g)[:capacity].sort().values
    rows[count:] = -1
    args = (hidden.to(dtype).float(), weight, rows, torch.tensor(count), k, 0.8)
    log_q, place = triton_head.head_topk(*args)
    want_q, want_place = reference.head_topk(*args)
    close(log_q, want_q, dtype)
    assert (place == want_place).float().mean() > 0.97  # but for ties by rounding
    assert torch.equal(place < 0, want_place < 0)


def test_ties_go_to_the_lower_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_head, "PROGRAMS", 3)
    g = torch.Generator().manual_seed(1)
    weight = torch.randint(-1, 2, (500, 16), generator=g).float()
    hidden = torch.randint(-1, 2, (4, 16), generator=g).float()
    args = (hidden, weight, torch.arange(500), torch.tensor(500), 16, 1.0)
    assert torch.equal(triton_head.head_topk(*args)[1], reference.head_topk(*args)[1])


def test_a_logit_that_is_no_number_shows() -> None:
    weight, hidden = torch.randn(200, 16), torch.randn(2, 16)
    weight[150] = torch.nan
    args = (hidden, weight, torch.arange(200), torch.tensor(200), 4, 1.0)
    assert bool(triton_head.head_topk(*args)[0].isnan().all())


def a_tree(n: int, t: int, seed: int) -> tuple[Tensor, Tensor]:
    """(depth int64 [n + t], ancestors int64 [n]) of the last n of t rows."""
    g = torch.Generator().manual_seed(seed)
    masks, depths = [], []
    for row in range(t):
        parent = int(torch.randint(-1, row, (1,), generator=g)) if row else -1
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << row)
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    signed = [m - (1 << 64) if m >> 63 else m for m in masks]
    return torch.tensor([*depths[t - n :], *depths]), torch.tensor(signed[t - n :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "t", "length", "heads", "kv_heads", "size"),
    [(5, 12, 70, 4, 2, 16), (61, 64, 300, 4, 1, 24), (1, 1, 0, 2, 2, 16), (10, 50, 1000, 8, 2, 32)],
)
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (40, 0.0), (0, 5.0)])
def test_tree_attention(
    n: int,
    t: int,
    length: int,
    heads: int,
    kv_heads: int,
    size: int,
    window: int,
    softcap: float,
    dtype: torch.dtype,
) -> None:
    g = torch.Generator().manual_seed(n + length)
    depth, ancestors = a_tree(n, t, n)
    total = length + t + 40  # what lies behind is not read
    keys, values = (torch.randn(total, kv_heads, size, generator=g).to(dtype) for _ in "kv")
    keys[length + t :], values[length + t :] = 1e4, 1e4
    q = torch.randn(n, heads, size, generator=g)
    splits = 4 if window else 16
    args = (q, keys, values, torch.tensor([length]), depth, ancestors, 0.3, window, softcap, splits)
    got, want = triton_attention.tree_attention(*args), reference.tree_attention(*args)
    # Numerators are rounded to the cache's dtype below the maximum so far, not below the last one:
    # each of them, and their sum, moves by half a unit in the last place at most.
    last_place = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    largest = float(values[: length + t].float().abs().max())
    torch.testing.assert_close(got, want, atol=1e-5 + last_place * largest, rtol=0)


@pytest.mark.parametrize("nodes", [0, 40])
def test_a_static_pass_whose_attention_splits_keys(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    """In the pass of a target, where it follows padding, scratch rows and other passes."""
    target = a_target(tiny_model_dir, torch.device("cpu"), torch.float32, "static")
    parents = torch.tensor([-1] + [(i - 1) // 3 for i in range(1, nodes + 1)])
    tree = DraftTree(torch.arange(nodes + 1) + 2, parents)
    calls, found = [], []
    on_gpu = triton_attention.tree_attention
    monkeypatch.setattr(
        triton_attention, "tree_attention", lambda *args: calls.append(args[-1]) or on_gpu(*args)
    )
    monkeypatch.setattr(sizes, "KEYS_A_SPLIT", 32)
    for split in (False, True):
        monkeypatch.setattr(sizes, "SPLIT_FROM", 0 if split else sizes.MOST_ROWS * 1000)
        monkeypatch.setattr(kernels, "_on_gpu", lambda x, split=split: split)
        state = target.begin(100)
        target.prefill(state, PROMPT)
        for _ in range(2):
            decision = target.decide(state, tree, SamplingConfig(), None)
            target.commit(state, decision.path)
        found.append((decision.path.tolist(), decision.bonus, decision.output.features))
    assert len(calls) == 6  # of two layers: the prompt and two trees
    assert min(calls) >= 8
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-4, rtol=1e-4)
