"""The compiled tree ops' argument checks in Python, for the PyTorch fallback: the same messages."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.ops.checks import expect


def check_ids(op: str, name: str, x: Tensor, n: int) -> None:
    expect(
        x.dtype == torch.int64 and tuple(x.shape) == (n,), op, name, f"contiguous int64 [{n}]", x
    )


def check_parents(op: str, parents: Tensor, forest: bool = False) -> None:
    """A parent precedes its children; -1 is the root's (forest: of an absent root)."""
    fits = parents.dim() == 1 and (forest or parents.numel() > 0)
    some = "" if forest else " with at least one row"
    expect(fits, op, "parents", f"int64 of shape [n]{some}", parents)
    expect(parents.dtype == torch.int64, op, "parents", "dtype int64", parents)
    for i, parent in enumerate(parents.tolist()):
        if (parent == -1 and (forest or i == 0)) or 0 <= parent < i:
            continue
        wanted = "-1" if i == 0 else ("-1 or a row before it" if forest else "a row before it")
        raise ValueError(f"{op}: parents[{i}]: expected {wanted}, got {parent}")


def check_walk(op: str, tokens: Tensor, parents: Tensor) -> None:
    check_parents(op, parents)
    check_ids(op, "tokens", tokens, parents.numel())


def check_target(op: str, tokens: Tensor, probs: Tensor, uniforms: Tensor) -> None:
    n = tokens.numel()
    fits = (
        probs.dim() == 2
        and probs.shape[0] == n
        and probs.shape[1] > 0
        and probs.dtype == torch.float32
    )
    expect(fits, op, "probs", f"contiguous float32 [{n}, V]", probs)
    fits = uniforms.dtype == torch.float32 and tuple(uniforms.shape) == (n,)
    expect(fits, op, "uniforms", f"contiguous float32 [{n}]", uniforms)
    vocab = probs.shape[1]
    for row, (token, u) in enumerate(zip(tokens.tolist(), uniforms.tolist(), strict=True)):
        expect(
            0 <= token < vocab, op, "tokens", f"ids within [0, {vocab})", f"{token} at row {row}"
        )
        expect(0 <= u < 1, op, "uniforms", "numbers within [0, 1)", f"{u} at row {row}")
    for row, total in enumerate(probs.double().sum(1).tolist()):
        good = 0 < total < float("inf")
        expect(good, op, "probs", "rows with a positive finite sum", f"another in row {row}")


def check_draft(tokens: Tensor, probs: Tensor, q: Tensor, q_ids: Tensor, q_rows: Tensor) -> None:
    op, n, vocab = "sampled_walk", tokens.numel(), probs.shape[1]
    dense = q_ids.numel() == 0
    fits = q.dim() == 2 and q.dtype == torch.float32
    width = not dense or q.shape[0] == 0 or q.shape[1] == vocab if fits else False
    expect(fits and width, op, "q", f"contiguous float32 [r, {vocab if dense else 'S'}]", q)
    check_ids(op, "q_rows", q_rows, n)
    for row, at in enumerate(q_rows.tolist()):
        wanted = f"-1 or a row of q below {q.shape[0]}"
        expect(-1 <= at < q.shape[0], op, "q_rows", wanted, f"{at} at row {row}")
    if not dense:
        fits = q_ids.dtype == torch.int64 and q_ids.shape == q.shape
        expect(fits, op, "q_ids", f"contiguous int64 {list(q.shape)}", q_ids)
        low, high = int(q_ids.min()), int(q_ids.max())
        bad = low if low < -1 else high
        expect(-1 <= bad < vocab, op, "q_ids", f"-1 or ids below {vocab}", bad)
    totals = q.double().sum(1) if dense else q.double().where(q_ids >= 0, 0.0).sum(1)
    for row, at in enumerate(q_rows.tolist()):
        if at >= 0:
            good = 0 <= float(totals[at]) < float("inf")
            expect(good, op, "q", "rows with a finite sum", f"another for row {row}")


def check_commit(caches: list[Tensor], base_len: int, rows: Tensor) -> None:
    op = "kv_commit"
    expect(base_len >= 0, op, "base_len", "0 or more", base_len)
    check_ids(op, "rows", rows, rows.numel())
    previous = -1
    for i, row in enumerate(rows.tolist()):
        expect(row > previous, op, "rows", "strictly ascending rows from 0 on", f"{row} at {i}")
        previous = row
    end = base_len + previous + 1 if rows.numel() else 0
    for cache in caches:
        fits = cache.dim() > 0 and cache.shape[0] >= end
        expect(fits, op, "caches", f"contiguous tensors of at least {end} rows", cache)


def check_expand(parent_scores: Tensor, log_q: Tensor, width: int) -> None:
    op = "topk_expand"
    fits = parent_scores.dim() == 1 and parent_scores.dtype == torch.float32
    expect(fits, op, "parent_scores", "contiguous float32 [w]", parent_scores)
    w = parent_scores.shape[0]
    fits = log_q.dim() == 2 and log_q.shape[0] == w and log_q.dtype == torch.float32
    expect(fits, op, "log_q", f"contiguous float32 [{w}, k]", log_q)
    expect(width > 0, op, "width", "1 or more", width)
    bad = bool((parent_scores[:, None] + log_q).isnan().any())
    expect(not bad, op, "log_q", "log-probabilities", "a NaN")


def check_rerank(scores: Tensor, parents: Tensor, size: int) -> None:
    op = "tree_rerank"
    check_parents(op, parents, forest=True)
    n = parents.numel()
    fits = scores.dtype == torch.float32 and tuple(scores.shape) == (n,)
    expect(fits, op, "scores", f"contiguous float32 [{n}]", scores)
    expect(size > 0, op, "size", "1 or more", size)
    expect(not bool(scores.isnan().any()), op, "scores", "log-probabilities", "a NaN")
