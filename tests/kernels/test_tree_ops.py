"""Tree ops: against the references, against exact enumeration of the law, and on bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dynaspec_cli.ops import reference_tree as reference
from dynaspec_cli.ops import tree
from dynaspec_cli.ops.extension import compiled


def random_parents(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    parents = [-1]
    for i in range(1, n):
        low = max(0, i - 12) if seed % 2 else 0
        parents.append(int(torch.randint(low, i, (1,), generator=generator)))
    return torch.tensor(parents)


@pytest.mark.parametrize("n", [1, 2, 17, 64, 65, 1025])
def test_mask_and_depth(n: int) -> None:
    for seed in (0, 1):
        parents = random_parents(n, seed)
        mask, depth = tree.tree_mask(parents)
        expected_mask, expected_depth = reference.tree_mask(parents)
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected_mask)
        assert torch.equal(depth, expected_depth)


def test_mask_by_hand() -> None:
    mask, depth = tree.tree_mask(torch.tensor([-1, 0, 0, 2]))
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, False],
        [True, False, True, True],
    ]
    assert depth.tolist() == [0, 1, 1, 2]


def test_greedy_walk_by_hand() -> None:
    tokens, parents = torch.tensor([9, 5, 6, 7, 8, 7]), torch.tensor([-1, 0, 0, 1, 2, 2])
    choices = torch.tensor([6, 7, 7, 1, 1, 1])
    assert tree.greedy_walk(tokens, parents, choices).tolist() == [0, 2, 5]
    assert tree.greedy_walk(tokens, parents, torch.full((6,), 3)).tolist() == [0]


@pytest.mark.parametrize("n", [1, 30, 1025])
def test_greedy_walk_matches_reference(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for seed in range(8):
        parents = random_parents(n, seed)
        tokens = torch.randint(0, 3, (n,), generator=generator)
        choices = torch.randint(0, 3, (n,), generator=generator)
        got = tree.greedy_walk(tokens, parents, choices)
        assert torch.equal(got, reference.greedy_walk(tokens, parents, choices))


def _random_probs(n: int, vocab: int, generator: torch.Generator) -> Tensor:
    p = torch.rand(n, vocab, generator=generator) ** 3
    p[torch.rand(n, vocab, generator=generator) < 0.3] = 0
    p[:, 0] += 0.01
    return p / p.sum(1, keepdim=True)


@pytest.mark.parametrize("vocab", [3, 7, 1000])
def test_stochastic_walk_matches_reference(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    for seed in range(40):
        n = 1 + seed
        parents = random_parents(n, seed)
        tokens = torch.randint(0, min(vocab, 6), (n,), generator=generator)
        probs, u = _random_probs(n, vocab, generator), torch.rand(n, generator=generator)
        path, residual = tree.stochastic_walk(tokens, parents, probs, u)
        expected_path, expected = reference.stochastic_walk(tokens, parents, probs, u)
        assert torch.equal(path, expected_path)
        torch.testing.assert_close(residual, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_sampled_walk_matches_reference(replacement: bool, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    vocab = 9
    for seed in range(60):
        n = 1 + seed % 23
        parents = random_parents(n, seed)
        tokens = torch.randint(0, 6, (n,), generator=generator)
        probs, u = _random_probs(n, vocab, generator), torch.rand(n, generator=generator)
        inner = sorted(set(parents.tolist()) - {-1})
        q_rows = torch.full((n,), -1)
        q_rows[inner] = torch.arange(len(inner))
        if sparse:
            q_ids = torch.stack(
                [torch.randperm(vocab, generator=generator)[:6] for _ in range(max(1, len(inner)))]
            )
            q_ids[:, 5] = -1
            q = torch.rand(q_ids.shape, generator=generator)
        else:
            q_ids = torch.empty(0, 0, dtype=torch.int64)
            q = _random_probs(max(1, len(inner)), vocab, generator)
        arguments = (tokens, parents, probs, u, q, q_ids, q_rows, replacement)
        path, residual = tree.sampled_walk(*arguments)
        expected_path, expected = reference.sampled_walk(*arguments)
        assert torch.equal(path, expected_path)
        torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-7)


def _first_token_law(walk, tokens: Tensor, vocab: int, grid: int, siblings: int) -> Tensor:
    """Law of the first emitted token of a root with leaf children: the mean over a grid
    of uniform draws (midpoints), exact where acceptance probabilities are multiples of 1/grid."""
    law = torch.zeros(vocab, dtype=torch.float64)
    for cell in itertools.product(range(grid), repeat=siblings):
        u = torch.tensor([0.0] + [(c + 0.5) / grid for c in cell])
        path, residual = walk(u)
        if path.numel() > 1:
            law[tokens[path[1]]] += 1
        else:
            law += residual.double()
    return law / grid**siblings


def test_stochastic_walk_keeps_the_law() -> None:
    # p = (4, 3, 2, 1) / 10; drafts 0, then 1: accepted with 4/10, then 3/6 of the rest.
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).repeat(3, 1)
    tokens, parents = torch.tensor([0, 0, 1]), torch.tensor([-1, 0, 0])
    law = _first_token_law(
        lambda u: tree.stochastic_walk(tokens, parents, probs, u), tokens, 4, 10, 2
    )
    torch.testing.assert_close(
        law, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("replacement", [False, True])
def test_sampled_walk_keeps_the_law(replacement: bool) -> None:
    """Sum over every draw of two siblings by its probability, and over a grid of uniforms."""
    vocab, grid = 3, 30
    p, q = (
        torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    )
    probs, parents = p.float().repeat(3, 1), torch.tensor([-1, 0, 0])
    q_rows, no_ids = torch.tensor([0, -1, -1]), torch.empty(0, 0, dtype=torch.int64)
    law = torch.zeros(vocab, dtype=torch.float64)
    total = 0.0
    for a, b in itertools.product(range(vocab), repeat=2):
        if a == b and not replacement:
            continue
        weight = float(q[a] * (q[b] if replacement else q[b] / (1 - q[a])))
        tokens = torch.tensor([0, a, b])
        law += weight * _first_token_law(
            lambda u, tokens=tokens: tree.sampled_walk(
                tokens, parents, probs, u, q.float()[None], no_ids, q_rows, replacement
            ),
            tokens,
            vocab,
            grid,
            2,
        )
        total += weight
    assert math.isclose(total, 1)
    torch.testing.assert_close(law, p, atol=1e-2, rtol=0)


def test_exhausted_draft_stops() -> None:
    """All of q's support was drawn and rejected: what follows cannot have been drawn."""
    probs = torch.tensor([[0.05, 0.05, 0.9]]).repeat(4, 1)
    tokens, parents = torch.tensor([0, 0, 1, 2]), torch.tensor([-1, 0, 0, 0])
    q, q_rows = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([0, -1, -1, -1])
    path, residual = tree.sampled_walk(
        tokens,
        parents,
        probs,
        torch.full((4,), 0.999),
        q,
        torch.empty(0, 0, dtype=torch.int64),
        q_rows,
        False,
    )
    assert path.tolist() == [0]
    assert residual.tolist() == pytest.approx([0, 0, 1])


def test_zero_mass_tokens_are_never_accepted() -> None:
    probs = torch.tensor([[0.0, 1.0]]).repeat(2, 1)
    path, residual = tree.stochastic_walk(
        torch.tensor([0, 0]), torch.tensor([-1, 0]), probs, torch.zeros(2)
    )
    assert path.tolist() == [0]
    assert residual.tolist() == [0, 1]
    path, _ = tree.stochastic_walk(
        torch.tensor([0, 1]), torch.tensor([-1, 0]), probs, torch.full((2,), 1 - 2**-24)
    )
    assert path.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_commit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in ([0], [0, 1, 2], [0, 3, 4, 9], [2, 7], []):
        caches = [
            torch.randn(40, 2, 8, generator=generator).to(dtype),
            torch.randn(40, 3, generator=generator),
        ]
        expected = [c.clone() for c in caches]
        reference.kv_commit(expected, 30, torch.tensor(rows, dtype=torch.int64))
        tree.kv_commit(caches, 30, torch.tensor(rows, dtype=torch.int64))
        for got, want in zip(caches, expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("w", "k", "width"), [(1, 1, 1), (1, 10, 10), (10, 10, 10), (3, 5, 40), (64, 16, 33)]
)
def test_topk_expand(w: int, k: int, width: int) -> None:
    generator = torch.Generator().manual_seed(w * k)
    # few distinct values: ties on purpose
    parent = torch.randint(-4, 0, (w,), generator=generator).float()
    log_q = torch.randint(-5, 0, (w, k), generator=generator).float()
    log_q[0, 0] = -math.inf
    index, score = tree.topk_expand(parent, log_q, width)
    expected_index, expected_score = reference.topk_expand(parent, log_q, width)
    assert torch.equal(index, expected_index)
    assert torch.equal(score, expected_score)


@pytest.mark.parametrize(("n", "size"), [(1, 1), (5, 9), (110, 16), (600, 60), (5000, 1024)])
def test_tree_rerank(n: int, size: int) -> None:
    generator = torch.Generator().manual_seed(n)
    parents = torch.tensor(
        [-1] + [int(torch.randint(-1, i, (1,), generator=generator)) for i in range(1, n)]
    )
    scores = torch.zeros(n)
    for i, parent in enumerate(parents.tolist()):
        step = -float(
            torch.randint(0, 4, (1,), generator=generator)
        )  # zero steps: ties along paths
        scores[i] = (scores[parent] if parent >= 0 else 0.0) + step
    index, new_parents = tree.tree_rerank(scores, parents, size)
    expected_index, expected_parents = reference.tree_rerank(scores, parents, size)
    assert torch.equal(index, expected_index)
    assert torch.equal(new_parents, expected_parents)
    assert index.numel() == min(n, size)
    for i, parent in enumerate(new_parents.tolist()):
        assert parent < i
        assert (parents[index[i]] == -1) if parent < 0 else (index[parent] == parents[index[i]])
    assert scores[index].sum() == torch.sort(scores, descending=True).values[:size].sum()


def test_rerank_survives_a_score_above_its_parent() -> None:
    index, parents = tree.tree_rerank(
        torch.tensor([-2.0, -1.0, -1.5]), torch.tensor([-1, 0, -1]), 2
    )
    assert index.tolist() == [0, 2]
    assert parents.tolist() == [-1, -1]


@pytest.fixture(params=["compiled", "fallback"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(tree, "_compiled", lambda op, x: False)
    elif not compiled(torch.zeros(1)):
        pytest.skip("no extension")
    return request.param


both_paths = pytest.mark.usefixtures("path")

BAD_TREES = [
    (torch.tensor([0, 0]), "parents\\[0\\]"),
    (torch.tensor([-1, 1]), "parents\\[1\\]"),
    (torch.tensor([-1, 0, -1]), "parents\\[2\\]"),
    (torch.tensor([[-1, 0]]), "shape"),
    (torch.tensor([-1.0, 0.0]), "dtype"),
    (torch.empty(0, dtype=torch.int64), "row"),
]


@both_paths
@pytest.mark.parametrize(("parents", "message"), BAD_TREES)
def test_bad_parents(parents: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree.tree_mask(parents)


@both_paths
def test_bad_walks() -> None:
    tokens, parents, u = torch.tensor([0, 1]), torch.tensor([-1, 0]), torch.zeros(2)
    probs = torch.full((2, 4), 0.25)
    with pytest.raises(ValueError, match=r"choices.*got"):
        tree.greedy_walk(tokens, parents, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"tokens.*got"):
        tree.stochastic_walk(torch.tensor([0, 4]), parents, probs, u)
    with pytest.raises(ValueError, match=r"probs.*got"):
        tree.stochastic_walk(tokens, parents, probs[:1], u)
    with pytest.raises(ValueError, match=r"probs.*got"):
        tree.stochastic_walk(tokens, parents, probs.double(), u)
    with pytest.raises(ValueError, match=r"probs.*row 0"):
        tree.stochastic_walk(tokens, parents, torch.full((2, 4), math.nan), u)
    with pytest.raises(ValueError, match=r"probs.*row 0"):
        tree.stochastic_walk(tokens, parents, torch.zeros(2, 4), u)
    with pytest.raises(ValueError, match=r"uniforms.*got"):
        tree.stochastic_walk(tokens, parents, probs, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"q_rows.*got"):
        tree.sampled_walk(
            tokens,
            parents,
            probs,
            u,
            probs[:1],
            torch.empty(0, 0, dtype=torch.int64),
            torch.tensor([1, -1]),
            False,
        )
    with pytest.raises(ValueError, match=r"q_ids.*got"):
        tree.sampled_walk(
            tokens,
            parents,
            probs,
            u,
            probs[:1, :1],
            torch.tensor([[4]]),
            torch.tensor([0, -1]),
            False,
        )


@both_paths
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("dense", [True, False])
def test_a_draft_without_a_finite_sum_is_refused(dense: bool, bad: float) -> None:
    tokens, parents, u = torch.tensor([0, 1]), torch.tensor([-1, 0]), torch.zeros(2)
    probs = torch.full((2, 4), 0.25)
    q, ids = torch.full((2, 4), 0.25), torch.empty(0, 0, dtype=torch.int64)
    q[1] = bad
    if not dense:
        ids = torch.arange(4).repeat(2, 1)
    fine, poor = torch.tensor([0, -1]), torch.tensor([1, -1])
    tree.sampled_walk(tokens, parents, probs, u, q, ids, fine, False)
    with pytest.raises(
        ValueError, match=r"sampled_walk: q: expected rows with a finite sum.*row 0"
    ):
        tree.sampled_walk(tokens, parents, probs, u, q, ids, poor, False)


@both_paths
def test_bad_commit_expand_rerank() -> None:
    with pytest.raises(ValueError, match="ascending"):
        tree.kv_commit([torch.zeros(8, 2)], 2, torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match="row"):
        tree.kv_commit([torch.zeros(8, 2)], 6, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="row"):
        tree.kv_commit([torch.zeros(8, 2)], 2, torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match=r"log_q.*got"):
        tree.topk_expand(torch.zeros(2), torch.zeros(3, 4), 2)
    with pytest.raises(ValueError, match=r"width.*got"):
        tree.topk_expand(torch.zeros(2), torch.zeros(2, 4), 0)
    with pytest.raises(ValueError, match="NaN"):
        tree.topk_expand(torch.zeros(2), torch.full((2, 4), math.nan), 2)
    with pytest.raises(ValueError, match=r"size.*got"):
        tree.tree_rerank(torch.zeros(2), torch.tensor([-1, 0]), 0)
    with pytest.raises(ValueError, match="parents"):
        tree.tree_rerank(torch.zeros(2), torch.tensor([-1, 1]), 1)
    with pytest.raises(ValueError, match="NaN"):
        tree.tree_rerank(torch.tensor([math.nan, 0.0]), torch.tensor([-1, 0]), 1)


def test_opcheck() -> None:
    """Schemas, mutation, fake kernels; needs the extension."""
    if not compiled(torch.empty(0)):
        pytest.skip("no extension")
    op, parents, tokens = torch.ops.dynaspec, torch.tensor([-1, 0, 0]), torch.tensor([0, 1, 2])
    probs, u = torch.full((3, 4), 0.25), torch.full((3,), 0.5)
    q_rows, no_ids = torch.tensor([0, -1, -1]), torch.empty(0, 0, dtype=torch.int64)
    calls = [
        (op.tree_mask, (parents,)),
        (op.greedy_walk, (tokens, parents, tokens)),
        (op.stochastic_walk, (tokens, parents, probs, u)),
        (op.sampled_walk, (tokens, parents, probs, u, probs[:1].clone(), no_ids, q_rows, False)),
        (op.kv_commit, ([torch.rand(8, 2), torch.rand(8)], 2, torch.tensor([0, 2]))),
        (op.topk_expand, (torch.zeros(2), torch.rand(2, 4), 3)),
        (op.tree_rerank, (torch.zeros(3), torch.tensor([-1, 0, -1]), 2)),
    ]
    for function, arguments in calls:
        torch.library.opcheck(function.default, arguments)
