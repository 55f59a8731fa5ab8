"""Token clusters: spherical k-means over the LM head's rows, with sizes balanced by capacity.

Rows are normalised, so that the nearest centre is the one of largest cosine. scikit-learn's
mini-batch k-means finds the centres; its centres are put back on the sphere after every batch. The
final assignment gives every cluster room for ``balance`` times the mean size and fills it token by
token in the order given (most frequent first), so that the tokens that matter lie where they belong
and the rarest fill the gaps.

Memory: one float32 copy of a chunk of rows at a time and the centres; 128,256 x 4,096 in bf16 (1
GiB) with 1,024 centres needs about 0.5 GiB beside the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError, UsageError

Progress = Callable[[str, float], None]
"""Called with a phase's name and its share done in [0, 1]."""

BATCH_ROWS = 8192
NEAREST = 32
"""Centres considered for a token before it is placed where there is room."""
MAX_ITERATIONS_DEFAULT = 3


@dataclass(frozen=True)
class TokenClusters:
    """``tokens`` int32 [V]: token ids cluster by cluster; ``offsets`` int32 [M+1]; ``centers``
    float32 [M, d], unit length (of the tokens assigned)."""

    tokens: Tensor
    offsets: Tensor
    centers: Tensor

    @property
    def num_clusters(self) -> int:
        return int(self.offsets.numel()) - 1

    def labels(self) -> Tensor:
        """Cluster of each token id, int64 [V]."""
        labels = torch.empty(self.tokens.numel(), dtype=torch.int64)
        sizes = torch.diff(self.offsets.long())
        labels[self.tokens.long()] = torch.repeat_interleave(torch.arange(sizes.numel()), sizes)
        return labels


def build_clusters(
    head: Tensor,
    num_clusters: int,
    priority: Tensor,
    *,
    balance: float = 1.5,
    epochs: float = MAX_ITERATIONS_DEFAULT,
    seed: int = 0,
    progress: Progress | None = None,
) -> TokenClusters:
    """Cluster the rows of ``head`` [V, d].

    ``priority`` int64 [V]: a permutation of the token ids, most frequent first; it decides who is
    placed first, and the order inside a cluster. No cluster exceeds ``ceil(balance * V / M)``
    tokens. ``epochs``: passes of the mini-batch k-means over the rows.
    """
    vocab_size = int(head.shape[0])
    if not 1 <= num_clusters <= vocab_size:
        raise UsageError(
            f"--clusters: expected 1 to {vocab_size} (the vocabulary), got {num_clusters}"
        )
    if balance < 1:
        raise UsageError(f"cluster balance: expected at least 1, got {balance}")
    if sorted_is_not_arange(priority, vocab_size):
        raise DynaSpecError("cluster priority: expected a permutation of all token ids")
    report = progress or (lambda phase, share: None)
    centers = _centers(head, num_clusters, epochs, seed, report)
    capacity = math.ceil(balance * vocab_size / num_clusters)
    labels = _assign(head, centers, priority, capacity, report)
    # Stable sort over tokens in order of priority: inside a cluster the frequent ones come first.
    order = torch.from_numpy(np.argsort(labels[priority.numpy()], kind="stable"))
    tokens = priority[order]
    sizes = torch.bincount(torch.from_numpy(labels), minlength=num_clusters)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    found = TokenClusters(tokens.to(torch.int32), offsets.to(torch.int32), centers)
    return TokenClusters(found.tokens, found.offsets, _means(head, found))


def sorted_is_not_arange(ids: Tensor, size: int) -> bool:
    return ids.numel() != size or not torch.equal(ids.sort().values, torch.arange(size))


def _unit_rows(head: Tensor, ids: Tensor | slice) -> np.ndarray[Any, Any]:
    rows = head[ids].float().cpu()
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def _centers(head: Tensor, count: int, epochs: float, seed: int, report: Progress) -> Tensor:
    from sklearn.cluster import MiniBatchKMeans

    vocab_size = int(head.shape[0])
    rng = np.random.default_rng(seed % 2**64)
    batch = min(vocab_size, max(BATCH_ROWS, 2 * count))
    steps = max(1, math.ceil(epochs * vocab_size / batch))
    model = MiniBatchKMeans(
        n_clusters=count,
        init="k-means++" if count <= 1024 else "random",
        n_init=1,
        batch_size=batch,
        reassignment_ratio=0.01,
        random_state=seed % 2**32,
    )
    order = rng.permutation(vocab_size)
    at = 0
    for step in range(steps):
        if at + batch > vocab_size:
            order, at = rng.permutation(vocab_size), 0
        model.partial_fit(_unit_rows(head, torch.from_numpy(order[at : at + batch])))
        at += batch
        norms = np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True)
        model.cluster_centers_ /= np.maximum(norms, 1e-12)
        report("cluster centres", (step + 1) / steps)
    return torch.from_numpy(np.asarray(model.cluster_centers_, dtype=np.float32))


def _assign(
    head: Tensor, centers: Tensor, priority: Tensor, capacity: int, report: Progress
) -> np.ndarray[Any, Any]:
    """Cluster of each token id, int64 [V]: the nearest centre with room, tokens taken in order of
    priority."""
    vocab_size, count = int(head.shape[0]), int(centers.shape[0])
    near = min(NEAREST, count)
    labels = np.full(vocab_size, -1, dtype=np.int64)
    room = np.full(count, capacity, dtype=np.int64)
    for lo in range(0, vocab_size, BATCH_ROWS):
        ids = priority[lo : lo + BATCH_ROWS]
        similarity = torch.from_numpy(_unit_rows(head, ids)) @ centers.t()
        nearest = torch.topk(similarity, near, dim=1).indices.numpy()
        for row, token in enumerate(ids.tolist()):
            choice = next((c for c in nearest[row] if room[c] > 0), None)
            if choice is None:
                open_scores = np.where(room > 0, similarity[row].numpy(), -np.inf)
                choice = int(open_scores.argmax())
            labels[token] = choice
            room[choice] -= 1
        report("assignment", min(1.0, (lo + BATCH_ROWS) / vocab_size))
    return labels


def _means(head: Tensor, clusters: TokenClusters) -> Tensor:
    """Unit mean rows of the clusters as assigned, float32 [M, d]; zero for an empty cluster."""
    labels = clusters.labels()
    sums = torch.zeros(clusters.num_clusters, int(head.shape[1]))
    for lo in range(0, int(head.shape[0]), BATCH_ROWS):
        part = slice(lo, lo + BATCH_ROWS)
        sums.index_add_(0, labels[part], torch.from_numpy(_unit_rows(head, part)))
    return torch.nn.functional.normalize(sums, dim=1)
