"""The LM head's share of a draft step, measured on this machine with the model's own weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.protocols import Drafter, DraftTree, Target
from dynaspec_cli.weights.weight import Weight

ROWS = 4
"""Rows of a typical frontier (the default tree's width)."""
TOP_K = 10
SECONDS = 0.5
"""Time spent on each measurement, after one warm-up call."""
MIN_RUNS = 3


def median_ms(call: Callable[[], Any], device: torch.device) -> float:
    """Median milliseconds of ``call``, over as many calls as fit in ``SECONDS``."""
    runs: list[float] = []
    call()
    begun = time.perf_counter()
    while len(runs) < MIN_RUNS or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        runs.append(1000 * (time.perf_counter() - start))
    return statistics.median(runs)


def measure(
    target: Target, drafter: Drafter | None, num_layers: int, shortlist_size: int
) -> dict[str, Any]:
    """Milliseconds of the head over the whole vocabulary and over ``shortlist_size`` tokens, of the
    drafter's body, and the head's share = head / (head + body), for ``ROWS`` rows.

    Without a drafter, and for one that is no layer under this head (lookup, a language model), its
    body is taken to cost what one of the target's ``num_layers`` does.
    """
    head = target.head_weight()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, target.hidden_size, generator=generator).to(target.device)
    full = median_ms(lambda: _topk(hidden, head, target.vocab_size), target.device)
    size = min(shortlist_size, target.vocab_size)
    short = median_ms(lambda: _topk(hidden, head, size), target.device)
    target_pass = _target_pass_ms(target)
    if all(hasattr(drafter, name) for name in ("read", "expand")):
        body, source = _drafter_ms(target, drafter), "measured"
    else:
        body = max(target_pass - full, 0.0) / max(num_layers, 1)
        why = "there is no drafter" if drafter is None else f"{drafter.name} is no layer below it"
        source = f"one target layer ({why})"
    return {
        "rows": ROWS,
        "vocab_size": target.vocab_size,
        "head_full_ms": full,
        "shortlist_size": size,
        "head_shortlist_ms": short,
        "draft_body_ms": body,
        "draft_body_source": source,
        "head_share_full": full / (full + body) if full + body else None,
        "head_share_shortlist": short / (short + body) if short + body else None,
        "target_pass_ms": target_pass,
        "threads": torch.get_num_threads(),
    }


def _topk(hidden: Tensor, head: Weight, rows: int) -> None:
    empty_ids = torch.empty(0, dtype=torch.int32, device=head.device)
    blocks = torch.tensor([[0, rows]], dtype=torch.int32, device=head.device)
    ops.shortlist_topk(
        hidden, head.data, head.scale, empty_ids, blocks, min(TOP_K, rows), 1.0, head.code
    )


def _target_pass_ms(target: Target) -> float:
    """One autoregressive step: a tree of its root alone, with full-vocabulary logits."""
    state = target.begin(16)
    target.prefill(state, torch.zeros(1, dtype=torch.int64))
    tree = DraftTree(torch.zeros(1, dtype=torch.int64), torch.tensor([-1]))
    return median_ms(lambda: target.verify(state, tree).argmax(), target.device)


def _drafter_ms(target: Target, drafter: Any) -> float:
    """One draft step over a frontier of ``ROWS`` nodes, without the head."""
    state = drafter.begin(torch.zeros(1, dtype=torch.int64), 16)
    device = target.device
    features = torch.zeros(1, target.hidden_size, device=device)
    tokens = torch.zeros(ROWS, dtype=torch.int64)
    frontier = torch.zeros(ROWS, target.hidden_size, device=device)
    roots = torch.full((ROWS,), -1, dtype=torch.int64)

    def step() -> None:
        drafter.read(state, features, tokens[:1])
        drafter.expand(state, frontier, tokens, roots)
        state.length = 0

    def root() -> None:
        drafter.read(state, features, tokens[:1])
        state.length = 0

    return max(median_ms(step, device) - median_ms(root, device), 0.0)
