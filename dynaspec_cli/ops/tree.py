"""Ops on draft trees: mask, walks, expansion, reranking, KV commit."""

from __future__ import annotations

from dynaspec_cli.ops.reference_tree import (
    greedy_walk,
    kv_commit,
    sampled_walk,
    stochastic_walk,
    topk_expand,
    tree_mask,
    tree_rerank,
)

__all__ = ["greedy_walk", "kv_commit", "sampled_walk", "stochastic_walk", "topk_expand", "tree_mask", "tree_rerank"]
