"""Ops on draft trees: mask, walks, expansion, reranking, KV commit.

Shapes and meaning stand in ``reference_tree.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynaspec_cli.ops import reference_tree as reference
from dynaspec_cli.ops import tree_checks as checks
from dynaspec_cli.ops.extension import EXTENSION, compiled
from dynaspec_cli.ops.fakes import on_one_device

_ops = torch.ops.dynaspec


def _compiled(op: str, x: Tensor) -> bool:
    if x.device.type == "cpu":
        return compiled(x)
    key = x.device.type.upper()
    return compiled(x) and torch._C._dispatch_has_kernel_for_dispatch_key(f"dynaspec::{op}", key)


def tree_mask(parents: Tensor) -> tuple[Tensor, Tensor]:
    """(mask bool [n, n]: row j is i or an ancestor of i; depth int64 [n]) of parents int64 [n]."""
    if _compiled("tree_mask", parents):
        return _ops.tree_mask(parents)
    checks.check_parents("tree_mask", parents)
    return reference.tree_mask(parents)


def greedy_walk(tokens: Tensor, parents: Tensor, choices: Tensor) -> Tensor:
    """Accepted rows int64 [a], root first; ``choices`` is the target's argmax at each row."""
    if _compiled("greedy_walk", parents):
        return _ops.greedy_walk(tokens, parents, choices)
    checks.check_walk("greedy_walk", tokens, parents)
    checks.check_ids("greedy_walk", "choices", choices, parents.numel())
    return reference.greedy_walk(tokens, parents, choices)


def stochastic_walk(
    tokens: Tensor, parents: Tensor, probs: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """(path int64 [a], residual float32 [V]) of a tree of deterministic drafts."""
    if _compiled("stochastic_walk", parents):
        return _ops.stochastic_walk(tokens, parents, probs, uniforms)
    checks.check_walk("stochastic_walk", tokens, parents)
    checks.check_target("stochastic_walk", tokens, probs, uniforms)
    return reference.stochastic_walk(tokens, parents, probs, uniforms)


def sampled_walk(
    tokens: Tensor,
    parents: Tensor,
    probs: Tensor,
    uniforms: Tensor,
    q: Tensor,
    q_ids: Tensor,
    q_rows: Tensor,
    replacement: bool = False,
) -> tuple[Tensor, Tensor]:
    """(path int64 [a], residual float32 [V]) of a tree whose siblings were drawn from ``q``."""
    args = (tokens, parents, probs, uniforms, q, q_ids, q_rows)
    if _compiled("sampled_walk", parents):
        return _ops.sampled_walk(*args, replacement)
    checks.check_walk("sampled_walk", tokens, parents)
    checks.check_target("sampled_walk", tokens, probs, uniforms)
    checks.check_draft(tokens, probs, q, q_ids, q_rows)
    return reference.sampled_walk(*args, replacement)


def kv_commit(caches: list[Tensor], base_len: int, rows: Tensor) -> None:
    """Move rows ``base_len + rows[i]`` to ``base_len + i`` in place, in every cache [T, ...]."""
    if _compiled("kv_commit", rows if not caches else caches[0]):
        _ops.kv_commit(caches, base_len, rows)
        return
    checks.check_commit(caches, base_len, rows)
    reference.kv_commit(caches, base_len, rows)


def topk_expand(parent_scores: Tensor, log_q: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Best ``width`` of w k path scores, best first: (flat index int64 [m], score float32 [m])."""
    if _compiled("topk_expand", log_q):
        return _ops.topk_expand(parent_scores, log_q, width)
    checks.check_expand(parent_scores, log_q, width)
    return reference.topk_expand(parent_scores, log_q, width)


def tree_rerank(scores: Tensor, parents: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Best ``size`` candidates, ascending: (index int64 [m], parents int64 [m], -1 the root)."""
    if _compiled("tree_rerank", scores):
        return _ops.tree_rerank(scores, parents, size)
    checks.check_rerank(scores, parents, size)
    return reference.tree_rerank(scores, parents, size)


def _fake_mask(parents: Tensor) -> tuple[Tensor, Tensor]:
    n = parents.shape[0]
    return parents.new_empty((n, n), dtype=torch.bool), torch.empty_like(parents)


def _fake_path(tokens: Tensor, parents: Tensor, choices: Tensor) -> Tensor:
    if parents.device.type == "cuda":  # as long as the tree, padded with -1
        return torch.empty_like(parents)
    return parents.new_empty((torch.library.get_ctx().new_dynamic_size(),))


def _fake_walk(tokens: Tensor, parents: Tensor, probs: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _fake_path(tokens, parents, tokens), probs.new_empty((probs.shape[1],))


def _fake_commit(caches: list[Tensor], base_len: int, rows: Tensor) -> None:
    return None


def _fake_expand(parent_scores: Tensor, log_q: Tensor, width: int) -> tuple[Tensor, Tensor]:
    count = min(width, log_q.shape[0] * log_q.shape[1])
    return log_q.new_empty((count,), dtype=torch.int64), log_q.new_empty((count,))


def _fake_rerank(scores: Tensor, parents: Tensor, size: int) -> tuple[Tensor, Tensor]:
    count = min(size, parents.shape[0])
    return parents.new_empty((count,)), parents.new_empty((count,))


_FAKES: dict[str, Callable[..., object]] = {
    "tree_mask": _fake_mask,
    "greedy_walk": _fake_path,
    "stochastic_walk": _fake_walk,
    "sampled_walk": _fake_walk,
    "kv_commit": _fake_commit,
    "topk_expand": _fake_expand,
    "tree_rerank": _fake_rerank,
}
if EXTENSION.module is not None:
    for _name, _function in _FAKES.items():
        torch.library.register_fake(f"dynaspec::{_name}", on_one_device(_name, _function))
