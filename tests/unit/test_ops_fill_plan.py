"""A fixed plan filled by the op, by its reference and by hand."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.ops import grow, reference_grow
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.tree.fixed import Plan
from dynaspec_cli.tree.specinfer import expansion_plan, first_places

compiled_only = pytest.mark.skipif(EXTENSION.module is None, reason="no extension was built")
both = pytest.mark.parametrize("ops", [grow, reference_grow], ids=["op", "reference"])


def begin(ops, plan: Plan):
    places = torch.full((3, len(plan.children)), -1, dtype=torch.int64)
    places[:2, 0] = 0
    return *ops.new_tree(7, len(plan.children), 1.0), plan.ranges(), places


def _lists(tensors) -> list[list[int]]:
    return [tensor.tolist() for tensor in tensors]


def _same(got, wanted) -> bool:
    """Tensors and numbers are equal, one by one."""
    return len(got) == len(wanted) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(got, wanted, strict=True)
    )


@both
def test_by_hand(ops) -> None:
    """<3, 2>: two of three draws alike, so that one node has the places of both, and a short
    row."""
    state = begin(ops, expansion_plan([3, 2]))
    draws = torch.tensor([[5, 4, 5]])
    *frontier, below = ops.fill_plan(*state, draws * 10, draws)
    assert below.tolist() == [[1, 2, 1]]
    assert _lists(frontier) == [[50, 40], [-1, -1], [0, 0], [4, 2]]
    columns = torch.tensor([[1, 2, 3, -1], [9, 9, 8, 8]])
    *frontier, below = ops.fill_plan(*state, columns, columns)
    assert below.tolist() == [[3, 4, 5, -1], [6, 6, -1, -1]]
    assert _lists(frontier) == [[], [], [], []]
    rows, paths, drawn, distinct = ops.grown_tree(*state[:2])
    assert rows.tolist() == [
        [7, 50, 40, 1, 2, 3, 9],
        [-1, 0, 0, 1, 1, 1, 2],
        [-1, 5, 4, 1, 2, 3, 9],
        [0, 1, 1, -1, -1, -1, -1],
        [0, 0, 1, -1, -1, -1, -1],
    ]
    assert paths.tolist() == [0.0] * 6
    assert (drawn, distinct) == (8, 6)


@both
def test_cache_rows_and_source_rows(ops) -> None:
    """Chains below two children of three: the middle one is not expanded, and what follows it moves
    up."""
    plan = Plan(((1, 2, 3), (4,), (), (5,), (6,), (7,), (), ()))
    state = begin(ops, plan)
    first = torch.tensor([[10, 11, 12]])
    assert _lists(ops.fill_plan(*state, first, first)[:4]) == [
        [10, 12], [-1, -1], [0, 0], [1, 1],
    ]  # fmt: skip
    second = torch.tensor([[20], [21]])
    assert _lists(ops.fill_plan(*state, second, second)[:4]) == [
        [20, 21], [0, 1], [0, 1], [1, 1],
    ]  # fmt: skip
    assert _lists(ops.fill_plan(*state, second, second)[:4]) == [[], [], [], []]


@compiled_only
def test_alike() -> None:
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        expansion = torch.randint(1, 4, (1 + seed % 4,), generator=generator).tolist()
        plan = first_places(expansion_plan(expansion), 1 + seed % 23)
        op, reference = begin(grow, plan), begin(reference_grow, plan)
        rows, k = 1, plan.width
        while rows:
            columns = torch.randint(0, 4, (rows, max(k, 1)), generator=generator)
            short = torch.randint(0, 6, (rows,), generator=generator)
            columns[torch.arange(columns.shape[1]) >= short[:, None]] = -1
            tokens = torch.where(columns < 0, -1, 3 * columns)
            got = grow.fill_plan(*op, tokens, columns)
            wanted = reference_grow.fill_plan(*reference, tokens, columns)
            assert _same(got, wanted)
            rows, k = got[0].numel(), max([1, *got[3].tolist()])
        assert _same(grow.grown_tree(*op[:2]), reference_grow.grown_tree(*reference[:2]))


@compiled_only
def test_arguments_that_do_not_fit() -> None:
    plan = expansion_plan([2, 1])
    draws = torch.tensor([[1, 2]])

    def fill(message: str, **wrong: torch.Tensor) -> None:
        nodes, values, ranges, places = begin(grow, plan)
        given = {"nodes": nodes, "values": values, "plan": ranges, "places": places}
        given |= {"tokens": draws, "columns": draws} | wrong
        with pytest.raises(ValueError, match=message):
            torch.ops.dynaspec.fill_plan(*given.values())

    fill(
        "plan: expected places below a place behind it", plan=torch.tensor([[0] * 5, [2] + [0] * 4])
    )
    fill(
        "plan: expected places below a place behind it", plan=torch.tensor([[4] * 5, [2] + [0] * 4])
    )
    fill(r"places\b.*\[3, 5\]", places=torch.zeros(3, 4, dtype=torch.int64))
    endless = torch.full((3, 5), -1, dtype=torch.int64)
    endless[:, 0] = 0
    fill("places: expected lists of places", places=endless)
    fill("tokens", tokens=torch.tensor([[1], [2]]))
    fill("columns", columns=torch.tensor([[1]]))
    nodes, values = grow.new_tree(7, 6, 1.0)
    nodes[7, 0] = 6
    fill("room for|at most 5", nodes=nodes, values=values)


@compiled_only
def test_opcheck() -> None:
    draws = torch.tensor([[1, 2]])
    arguments = (*begin(grow, expansion_plan([2, 1])), draws, draws)
    torch.library.opcheck(torch.ops.dynaspec.fill_plan.default, arguments)
