"""Plain PyTorch references of the tree ops.

A tree of n rows is ``parents`` int64 [n] with parents[0] = -1 (the root) and 0 <= parents[i] < i.
Siblings are tried in row order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tree_mask(parents: Tensor) -> tuple[Tensor, Tensor]:
    """(mask bool [n, n]: row j is i or an ancestor of i; depth int64 [n], root 0) of parents
    int64 [n], parents[0] = -1."""
    n = parents.numel()
    mask = torch.zeros(n, n, dtype=torch.bool)
    depth = torch.zeros(n, dtype=torch.int64)
    for i, parent in enumerate(parents.tolist()):
        if parent >= 0:
            mask[i] = mask[parent]
            depth[i] = depth[parent] + 1
        mask[i, i] = True
    return mask.to(parents.device), depth.to(parents.device)


def greedy_walk(tokens: Tensor, parents: Tensor, choices: Tensor) -> Tensor:
    """Accepted rows int64 [a], root first: from the root follow the child whose token equals the
    target's choice (``choices`` int64 [n], the target's argmax at each row) until there is none.
    ``tokens`` int64 [n]."""
    path = [0]
    token, parent, choice = tokens.tolist(), parents.tolist(), choices.tolist()
    for i in range(1, len(token)):
        if parent[i] == path[-1] and token[i] == choice[parent[i]]:
            path.append(i)
    return torch.tensor(path, dtype=torch.int64, device=tokens.device)


def kv_commit(caches: list[Tensor], base: Tensor, rows: Tensor) -> None:
    """Keep the accepted tree rows: cache row ``base + rows[i]`` moves to ``base + i`` in every
    cache [T, ...], in place. base int64 [1]; rows int64 [a], strictly ascending, from 0, and then
    -1, which move nothing."""
    place = torch.arange(rows.numel(), device=rows.device)
    there = base + torch.where(rows < 0, place, rows)
    for cache in caches:
        last = max(cache.shape[0] - 1, 0)  # only padding reaches beyond
        cache[(base + place).clamp(max=last)] = cache[there.clamp(max=last)]
