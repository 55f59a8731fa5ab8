"""Plain PyTorch references of the tree ops.

A tree of n rows is ``parents`` int64 [n] with parents[0] = -1 (the root) and 0 <= parents[i] < i.
Siblings are tried in row order. All draws arrive as arguments, so a result is a function of its
inputs.
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


def stochastic_walk(
    tokens: Tensor, parents: Tensor, probs: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Verification of a tree of deterministic drafts (EAGLE ``evaluate_posterior``; exact, since
    a draft is a point mass).

    tokens, parents int64 [n]; probs float32 [n, V], the target's distribution p after each row
    (any positive sum); uniforms float32 [n] in [0, 1), entry i decides row i. At a row, child x
    in turn is accepted when ``u < p(x)``; else p(x) becomes 0 and p is renormalised. Returns
    (path int64 [a], root first; residual float32 [V]: what is left of p at the path's last row,
    normalised; the bonus token is drawn from it).
    """
    node, path = 0, [0]
    token, parent, u = tokens.tolist(), parents.tolist(), uniforms.tolist()
    residual = probs[0].double() / probs[0].double().sum()
    for i in range(1, len(token)):
        if parent[i] != node:
            continue
        if u[i] < float(residual[token[i]]):
            node = i
            path.append(i)
            residual = probs[i].double() / probs[i].double().sum()
        else:
            residual[token[i]] = 0
            residual = residual / residual.sum()
    return torch.tensor(path, dtype=torch.int64, device=tokens.device), residual.float()


def sampled_walk(
    tokens: Tensor,
    parents: Tensor,
    probs: Tensor,
    uniforms: Tensor,
    q: Tensor,
    q_ids: Tensor,
    q_rows: Tensor,
    replacement: bool,
) -> tuple[Tensor, Tensor]:
    """Verification of a tree whose siblings were drawn from a draft distribution q, in row order.

    As ``stochastic_walk``, with q float32 [r, S] (any positive sum a row), q_ids int64 [r, S] the
    token of each entry (-1: padding; an empty tensor: entry = token id, S = V), q_rows int64 [n]
    the row of q that a node's children were drawn from (-1: no children). With R = p and D =
    q(node), both normalised, child x in turn is accepted when ``u D(x) < R(x)``; else ``R =
    norm(max(R - D, 0))``, and without replacement ``D(x) = 0, D = norm(D)`` (DySpec Algorithm 3,
    Sequoia Algorithm 2); with replacement D stays (SpecInfer's multi-step scheme). A child with
    D(x) = 0 cannot have been drawn: the siblings after it are not tried.
    """

    def start(row: int) -> tuple[Tensor, Tensor | None]:
        p = probs[row].double() / probs[row].double().sum()
        if int(q_rows[row]) < 0:
            return p, None
        entry = q[int(q_rows[row])].double()
        if not q_ids.numel():
            return p, entry / entry.sum()
        ids = q_ids[int(q_rows[row])]
        dense = torch.zeros_like(p).index_put_((ids[ids >= 0],), entry[ids >= 0])
        return p, dense / dense.sum()

    node, path = 0, [0]
    token, parent, u = tokens.tolist(), parents.tolist(), uniforms.tolist()
    residual, draft = start(0)
    for i in range(1, len(token)):
        if parent[i] != node or draft is None:
            continue
        x = token[i]
        if float(draft[x]) <= 0:
            draft = None
        elif u[i] * float(draft[x]) < float(residual[x]):
            node = i
            path.append(i)
            residual, draft = start(i)
        else:
            left = (residual - draft).clamp_min(0)
            if float(left.sum()) > 0:  # equal up to rounding: R stays
                residual = left / left.sum()
            if not replacement:
                draft[x] = 0
                draft = draft / draft.sum() if float(draft.sum()) > 0 else None
    return torch.tensor(path, dtype=torch.int64, device=tokens.device), residual.float()


def kv_commit(caches: list[Tensor], base_len: int, rows: Tensor) -> None:
    """Keep the accepted tree rows: cache row ``base_len + rows[i]`` moves to ``base_len + i`` in
    every cache [T, ...], in place. rows int64 [a], strictly ascending, from 0."""
    index = base_len + rows
    for cache in caches:
        cache[base_len : base_len + rows.numel()] = cache[index]


def topk_expand(parent_scores: Tensor, log_q: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """EAGLE-2's expansion: the best ``min(width, w k)`` of ``parent_scores[i] + log_q[i, j]``,
    best first; a tie goes to the lower index. parent_scores float32 [w], log_q float32 [w, k].
    Returns (index int64 [m], flat: i k + j; score float32 [m])."""
    flat = (parent_scores[:, None] + log_q).flatten()
    score, index = torch.sort(flat, descending=True, stable=True)
    return index[:width], score[:width]


def tree_rerank(scores: Tensor, parents: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """EAGLE-2's reranking: the best ``min(size, N)`` of N candidate nodes, ascending, so that
    parents precede children.

    scores float32 [N] (path log-probabilities), parents int64 [N] (-1: child of the root, which
    is no candidate; parents[i] < i). A node's score is taken as the minimum along its path (a
    no-op but for rounding) and a tie goes to the lower index, so the choice is connected. Returns
    (index int64 [m]; parents int64 [m] within the choice, -1 the root).
    """
    value, parent = scores.tolist(), parents.tolist()
    for i, above in enumerate(parent):
        if above >= 0:
            value[i] = min(value[i], value[above])
    best = sorted(range(len(value)), key=lambda i: (-value[i], i))[:size]
    chosen = sorted(best)
    place = {node: i for i, node in enumerate(chosen)}
    new_parents = [place[parent[i]] if parent[i] >= 0 else -1 for i in chosen]
    device = scores.device
    index = torch.tensor(chosen, dtype=torch.int64, device=device)
    return index, torch.tensor(new_parents, dtype=torch.int64, device=device)
