"""Tree ops: against the references, against exact enumeration of the law, and on bad input."""

from __future__ import annotations

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_commit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in ([0], [0, 1, 2], [0, 3, 4, 9], [2, 7], []):
        caches = [
            torch.randn(40, 2, 8, generator=generator).to(dtype),
            torch.randn(40, 3, generator=generator),
        ]
        expected = [c.clone() for c in caches]
        path = torch.tensor(rows, dtype=torch.int64)
        for cache in expected:  # ascending: nothing is read after it was overwritten
            for place, row in enumerate(rows):
                cache[30 + place] = cache[30 + row]
        reference.kv_commit(copies := [c.clone() for c in caches], torch.tensor([30]), path)
        tree.kv_commit(caches, torch.tensor([30]), path)
        for got, want in zip(copies, expected, strict=True):
            assert torch.equal(got, want)
        for got, want in zip(caches, expected, strict=True):
            assert torch.equal(got, want)


@pytest.fixture(params=["compiled", "fallback"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(tree, "_compiled", lambda op, x: False)
    elif not compiled(torch.zeros(1)):
        pytest.skip("no extension")
    return request.param


both_paths = pytest.mark.usefixtures("path")


@both_paths
def test_kv_commit_of_a_padded_path() -> None:
    """As a device has it, where a path's length has no say in shapes."""
    for rows in ([0, 3, -1, -1, -1, -1, -1], [0, 1, 2, -1], [-1, -1], [0, 3]):
        caches = [torch.randn(12, 3), torch.randn(12, 2, 2)]
        expected = [cache.clone() for cache in caches]
        for cache in expected:
            for place, row in enumerate(row for row in rows if row >= 0):
                cache[7 + place] = cache[7 + row]
        for commit in (reference.kv_commit, tree.kv_commit):
            copies = [cache.clone() for cache in caches]
            commit(copies, torch.tensor([7]), torch.tensor(rows))
            for got, want in zip(copies, expected, strict=True):
                assert torch.equal(got, want)


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
def test_bad_walk() -> None:
    tokens, parents = torch.tensor([0, 1]), torch.tensor([-1, 0])
    with pytest.raises(ValueError, match=r"choices.*got"):
        tree.greedy_walk(tokens, parents, torch.tensor([0]))


@both_paths
def test_bad_commit() -> None:
    with pytest.raises(ValueError, match="ascending"):
        tree.kv_commit([torch.zeros(8, 2)], torch.tensor([2]), torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match="row"):
        tree.kv_commit([torch.zeros(8, 2)], torch.tensor([6]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="row"):
        tree.kv_commit([torch.zeros(8, 2)], torch.tensor([2]), torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match=r"base.*got"):
        tree.kv_commit([torch.zeros(8, 2)], torch.tensor([-1]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"base.*got"):
        tree.kv_commit([torch.zeros(8, 2)], torch.tensor([1, 2]), torch.tensor([0, 2]))


def test_opcheck() -> None:
    """Schemas, mutation, fake kernels; needs the extension."""
    if not compiled(torch.empty(0)):
        pytest.skip("no extension")
    op, parents, tokens = torch.ops.dynaspec, torch.tensor([-1, 0, 0]), torch.tensor([0, 1, 2])
    calls = [
        (op.tree_mask, (parents,)),
        (op.greedy_walk, (tokens, parents, tokens)),
        (
            op.kv_commit,
            ([torch.rand(8, 2), torch.rand(8)], torch.tensor([2]), torch.tensor([0, 2])),
        ),
    ]
    for function, arguments in calls:
        torch.library.opcheck(function.default, arguments)
