"""The tree ops on a GPU against the references, up to 1,024 nodes and a full vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops import reference_tree as reference


def random_tree(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(parents, tokens) with few tokens, so that walks go deep."""
    g = torch.Generator().manual_seed(seed)
    parents = [-1] + [int(torch.randint(max(0, i - 9), i, (1,), generator=g)) for i in range(1, n)]
    return torch.tensor(parents), torch.randint(0, 3, (n,), generator=g)


@pytest.mark.parametrize("n", [1, 17, 64, 1025])
def test_mask_and_greedy_walk(cuda: torch.device, n: int) -> None:
    parents, tokens = random_tree(n, n)
    mask, depth = ops.tree_mask(parents.to(cuda))
    expected = reference.tree_mask(parents)
    assert torch.equal(mask.cpu(), expected[0])
    assert torch.equal(depth.cpu(), expected[1])
    choices = torch.randint(0, 3, (n,))
    path = ops.greedy_walk(tokens.to(cuda), parents.to(cuda), choices.to(cuda)).cpu()
    wanted = reference.greedy_walk(tokens, parents, choices)
    assert path.numel() == n
    assert torch.equal(path[path >= 0], wanted)


@pytest.mark.parametrize("vocab", [5, 1000, 262144])
@pytest.mark.parametrize("seed", range(4))
def test_walks(cuda: torch.device, vocab: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    n = 20
    parents, tokens = random_tree(n, seed)
    probs = torch.rand(n, vocab, generator=g) ** 3
    probs[:, :3] += 0.3 * probs.sum(1, keepdim=True)
    uniforms = torch.rand(n, generator=g)
    args = (tokens, parents, probs, uniforms)
    path, residual = ops.stochastic_walk(*(t.to(cuda) for t in args))
    expected = reference.stochastic_walk(*args)
    assert torch.equal(path[path >= 0].cpu(), expected[0])
    torch.testing.assert_close(residual.cpu(), expected[1], atol=1e-5, rtol=1e-3)
    q, rows = torch.rand(4, vocab, generator=g), torch.randint(0, 4, (n,), generator=g)
    draft = (q, torch.empty(0, dtype=torch.int64), rows)
    for replacement in (False, True):
        got = ops.sampled_walk(*(t.to(cuda) for t in (*args, *draft)), replacement)
        wanted = reference.sampled_walk(*args, *draft, replacement)
        assert torch.equal(got[0][got[0] >= 0].cpu(), wanted[0])
        torch.testing.assert_close(got[1].cpu(), wanted[1], atol=1e-5, rtol=1e-2)


def test_expand_and_rerank(cuda: torch.device) -> None:
    g = torch.Generator().manual_seed(2)
    for w, k, width in ((1, 1, 3), (10, 10, 10), (64, 64, 1000)):
        scores, log_q = (
            torch.randn(w, generator=g),
            torch.randn(w, k, generator=g).round(decimals=1),
        )
        got = ops.topk_expand(scores.to(cuda), log_q.to(cuda), width)
        wanted = reference.topk_expand(scores, log_q, width)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, wanted, strict=True))
    parents = torch.tensor([int(torch.randint(-1, i, (1,), generator=g)) for i in range(3000)])
    value = torch.randn(3000, generator=g).round(decimals=1)
    got = ops.tree_rerank(value.to(cuda), parents.to(cuda), 1024)
    wanted = reference.tree_rerank(value, parents, 1024)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kv_commit(cuda: torch.device, dtype: torch.dtype) -> None:
    caches = [torch.randn(200, 2, width).to(dtype) for width in (64, 33)] * 30
    rows = torch.tensor([0, 1, 5, 6, 40])
    on_device = [c.to(cuda) for c in caches]
    padded = torch.cat([rows, torch.full((3,), -1)])
    ops.kv_commit(on_device, 100, padded.to(cuda))
    expected = [c.clone() for c in caches]
    reference.kv_commit(expected, 100, rows)
    for a, b in zip(on_device, expected, strict=True):
        assert torch.equal(a.cpu(), b)
