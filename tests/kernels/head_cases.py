"""Random inputs of the head ops, and the tolerance a float32 sum of their products deserves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.ops import reference

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
EMPTY = torch.empty(0)
IDENTITY = torch.empty(0, dtype=torch.int32)


@dataclass(frozen=True)
class HeadCase:
    """Arguments of ``draft_head``, shapes as in ``ops.reference``."""

    hidden: Tensor
    head: Tensor
    scale: Tensor
    row_ids: Tensor
    cluster_scores: Tensor
    cluster_offsets: Tensor
    extra_rows: Tensor
    core_rows: int
    budget: int

    @property
    def union(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        scores = self.cluster_scores
        return scores, self.cluster_offsets, self.extra_rows, self.core_rows, self.budget

    @property
    def dense(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.hidden, self.head, self.scale, self.row_ids


def make_weight(
    m: int, k: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(weight [m, k], scale float32 [m], empty unless int8)."""
    weight = torch.randn(m, k, generator=generator)
    if dtype == torch.int8:
        return reference.quantize_rows(weight)
    return weight.to(dtype), EMPTY


def make_case(
    seed: int,
    n: int,
    d: int,
    vocab: int,
    dtype: torch.dtype,
    clusters: int = 20,
    extra: int = 30,
    core: int = 17,
    budget: int | None = None,
    permuted: bool = True,
) -> HeadCase:
    g = torch.Generator().manual_seed(seed)
    head, scale = make_weight(vocab, d, dtype, g)
    cuts = torch.randint(0, vocab + 1, (max(clusters - 1, 0),), generator=g).tolist()
    offsets = torch.tensor(sorted([0, vocab, *cuts]), dtype=torch.int32)
    row_ids = torch.randperm(vocab, generator=g, dtype=torch.int32) if permuted else IDENTITY
    return HeadCase(
        hidden=torch.randn(n, d, generator=g) / d**0.5,
        head=head,
        scale=scale,
        row_ids=row_ids,
        cluster_scores=torch.randn(n, offsets.numel() - 1, generator=g),
        cluster_offsets=offsets,
        extra_rows=torch.randint(0, vocab, (extra,), generator=g, dtype=torch.int32),
        core_rows=min(core, vocab),
        budget=vocab // 2 if budget is None else budget,
    )


def assert_same_topk(got: tuple[Tensor, ...], want: tuple[Tensor, ...], atol: float) -> None:
    """Values agree; ids agree wherever ranks are further apart than rounding."""
    log_q, ids, lse = got[:3]
    want_q, want_ids, want_lse = want[:3]
    assert log_q.shape == want_q.shape
    assert log_q.dtype == torch.float32
    assert ids.dtype == torch.int64
    torch.testing.assert_close(log_q, want_q, atol=atol, rtol=0)
    torch.testing.assert_close(lse, want_lse, atol=atol, rtol=0)
    gap = torch.diff(want_q, dim=1).abs() > 2 * atol
    edge = torch.zeros(want_q.shape[0], 1, dtype=torch.bool)
    clear = torch.cat([~edge, gap], 1) & torch.cat(
        [gap, edge], 1
    )  # the last may tie with rank k + 1
    assert torch.equal(ids[clear], want_ids[clear])
    assert all(len(set(row)) == len(row) for row in ids.tolist())
