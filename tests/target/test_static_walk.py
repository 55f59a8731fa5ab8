"""Walks in fixed shapes against the walks of the host, over random trees."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli import ops
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.source import BATCH, GeneratorSource
from dynaspec_cli.sampling.verify import verify_sampled
from dynaspec_cli.target.static.filters import filtered
from dynaspec_cli.target.static.tree import greedy_path, rows_of_tree, sampled_path

PADDED = 32


def world(seed: int, vocab: int) -> tuple[DraftTree, torch.Generator]:
    """A tree of up to 20 rows whose siblings differ."""
    g = torch.Generator().manual_seed(seed)
    tokens, parents = [0], [-1]
    for _ in range(1, int(torch.randint(1, 20, (1,), generator=g))):
        row = len(tokens)
        parent = int(torch.randint(max(0, row - 4), row, (1,), generator=g))
        taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        free = [t for t in range(vocab) if t not in taken]
        if free:
            tokens.append(free[int(torch.randint(len(free), (1,), generator=g))])
            parents.append(parent)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents)), g


def padded(x: torch.Tensor, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, PADDED - x.numel()), value=value)


def rows_of(tree: DraftTree):
    return rows_of_tree(padded(tree.parents, -1), torch.tensor([tree.tokens.numel()]))


@pytest.mark.parametrize("seed", range(40))
def test_ancestors_depth_and_elders(seed: int) -> None:
    tree, _ = world(seed, 50)
    n = tree.tokens.numel()
    rows = rows_of(tree)
    mask, depth = ops.tree_mask(tree.parents)
    assert torch.equal(rows.ancestors[:n, :n], mask)
    assert torch.equal(rows.depth[:n], depth)
    assert torch.equal(rows.ancestors[n:], torch.eye(PADDED, dtype=torch.bool)[n:])
    parents = tree.parents.tolist()
    for i in range(PADDED):
        for j in range(PADDED):
            is_elder = 0 < j < i < n and parents[i] == parents[j]
            assert bool(rows.elder[i, j]) == is_elder


@pytest.mark.parametrize("seed", range(60))
def test_greedy(seed: int) -> None:
    tree, g = world(seed, 3)
    n = tree.tokens.numel()
    choices = torch.randint(3, (PADDED,), generator=g)
    expected = ops.greedy_walk(tree.tokens, tree.parents, choices[:n])
    path, bonus = greedy_path(rows_of(tree), padded(tree.tokens, 0), choices)
    assert path.rows[: int(path.size)].tolist() == expected.tolist()
    assert int(bonus) == int(choices[expected[-1]])


def laws(tree: DraftTree, g: torch.Generator, vocab: int) -> torch.Tensor:
    """Rows of p: peaked, with zeros, and some whose mass is all their drafted children's."""
    p = torch.softmax(torch.randn(PADDED, vocab, generator=g) * 3, -1)
    p = p * (torch.rand(p.shape, generator=g) < 0.7)
    for row in range(tree.tokens.numel()):
        drafted = tree.tokens[tree.parents == row]
        if drafted.numel() and float(torch.rand((), generator=g)) < 0.4:
            only = torch.zeros(vocab)
            only[drafted] = torch.rand(drafted.numel(), generator=g)
            p[row] = only
        if not float(p[row].sum()) > 0:
            p[row, 0] = 0.3
    return p


@pytest.mark.parametrize("seed", range(200))
def test_sampled_draws_what_the_host_draws(seed: int) -> None:
    """The same path, the same token, and the same number of uniforms from one source."""
    vocab = 4 + seed % 9
    tree, g = world(seed, vocab)
    p = laws(tree, g, vocab)
    host, ours = GeneratorSource(seed), GeneratorSource(seed)
    rows, tokens = rows_of(tree), padded(tree.tokens, 0)
    for _ in range(6):
        expected = verify_sampled(tree, lambda row: p[row], host)
        uniforms = ours.ahead(tree.num_nodes + 2)
        path, bonus, used, mass = sampled_path(rows, tokens, p, uniforms)
        assert path.rows[: int(path.size)].tolist() == expected.path.tolist()
        assert int(bonus) == expected.bonus
        assert bool(mass)
        ours.skip(int(used))
        assert ours.uniform() == host.uniform()


def test_uniforms_ahead_are_those_that_follow() -> None:
    a, b = GeneratorSource(5), GeneratorSource(5)
    for count in (3, 1, BATCH, 2 * BATCH + 7, 0, 12):
        ahead = a.ahead(max(count, 1))
        expected = [b.uniform() for _ in range(count)]
        assert ahead[:count].tolist() == expected
        a.skip(count)
    assert a.uniform() == b.uniform()


FILTERS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (5, 1.0, 0.0),
    (500, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.05, 0.0),
    (0, 1.0, 0.1),
    (7, 0.8, 0.05),
]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), FILTERS)
def test_filters(top_k: int, top_p: float, min_p: float) -> None:
    g = torch.Generator().manual_seed(top_k)
    logits = torch.randn(30, 97, generator=g) * 3
    logits[:10] = logits[:10].round()  # ties at every border
    expected = ops.filtered_softmax(logits, 0.8, top_k, top_p, min_p)
    parameters = torch.tensor([top_k, top_p, min_p], dtype=torch.float64)
    got = filtered(logits / 0.8, parameters)
    assert torch.equal(got > 0, expected > 0)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
