"""The compiled ops that draw, grow and verify against their references, and their laws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dynaspec_cli.ops import draw, grow, reference_draw, reference_grow
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.tree.fixed import Plan
from dynaspec_cli.tree.specinfer import expansion_plan

compiled_only = pytest.mark.skipif(EXTENSION.module is None, reason="no extension was built")

FILTERS = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.2),
    (0.7, 9, 0.9, 0.05),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 1e-6, 0.0),
]


def scores(seed: int, rows: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(2.5 * torch.randn(rows, size, generator=generator), -1)


@compiled_only
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_filtered_softmax(filters: tuple, size: int) -> None:
    for seed in range(5):
        logits = scores(seed, 3, size)
        got = torch.ops.dynaspec.filtered_softmax(logits, *filters)
        wanted = reference_draw.filtered_softmax(logits, *filters)
        torch.testing.assert_close(got, wanted, rtol=2e-6, atol=1e-9)
        assert torch.equal(got > 0, wanted > 0) or filters == FILTERS[0] or filters == FILTERS[1]


@compiled_only
def test_filtered_softmax_keeps_ties_with_the_kth_and_the_higher_ids_of_the_nucleus() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    p = torch.ops.dynaspec.filtered_softmax(logits, 1.0, 2, 1.0, 0.0)
    assert (p > 0).tolist() == [[True, True, True, True, False]]
    for top_p in (0.5, 0.6, 0.7):
        args = (logits, 1.0, 0, top_p, 0.0)
        got = torch.ops.dynaspec.filtered_softmax(*args)
        assert torch.equal(got > 0, reference_draw.filtered_softmax(*args) > 0)


@compiled_only
def test_not_finite() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        logits = torch.tensor([[0.0, bad, 1.0]])
        with pytest.raises(ValueError, match="expected finite"):
            torch.ops.dynaspec.filtered_softmax(logits, 1.0, 0, 1.0, 0.0)


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_index(dtype: torch.dtype) -> None:
    weights = torch.tensor([0.0, 0.5, 0.0, 1.0, 0.5, 0.0], dtype=dtype)
    for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53, 1.0):
        assert torch.ops.dynaspec.draw_index(weights, u) == reference_draw.draw_index(weights, u)
    assert torch.ops.dynaspec.draw_index(torch.zeros(4, dtype=dtype), 0.5) == -1
    large = torch.rand(5000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for u in torch.rand(200, generator=torch.Generator().manual_seed(1)).tolist():
        assert torch.ops.dynaspec.draw_index(large, u) == reference_draw.draw_index(large, u)


@compiled_only
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_rows_draw_for_draw(dtype: torch.dtype, replacement: bool) -> None:
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(5, 9, dtype=dtype, generator=generator)
        weights[weights < 0.3] = 0
        weights[4] = 0
        uniforms = torch.rand(5, 6, dtype=torch.float64, generator=generator)
        counts, enough = [6, 3, 0, 5, 2], [2.0, 0.5, 0.5, 0.2, 0.1]
        for limit in (None, enough):
            got = draw.draw_rows(weights, uniforms, counts, limit, replacement)
            wanted = reference_draw.draw_rows(weights, uniforms, counts, limit, replacement)
            assert torch.equal(got, wanted)


def test_the_law_of_draws_from_their_intervals() -> None:
    """Each ordered pair's share of the unit square, read from a fine grid, is its probability; the
    third draw stops where enough is held."""
    weights = torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64)
    steps = 40
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    pairs = torch.cartesian_prod(grid, grid)
    drawn = draw.draw_rows(weights.repeat(len(pairs), 1), pairs, [2] * len(pairs), None, False)
    shares: dict[tuple[int, ...], float] = {}
    for pair in drawn.tolist():
        shares[tuple(pair)] = shares.get(tuple(pair), 0.0) + 1 / len(pairs)
    q = weights[0].tolist()
    for a, b in itertools.permutations((0, 2, 3), 2):
        assert shares[a, b] == pytest.approx(q[a] * q[b] / (1 - q[a]), abs=2 / steps)
    uniforms = torch.tensor([[0.1, 0.1, 0.1]], dtype=torch.float64)
    assert draw.draw_rows(weights, uniforms, [3], [0.5], False).tolist() == [[0, 2, -1]]
    assert draw.draw_rows(weights, uniforms, [3], [0.49], False).tolist() == [[0, -1, -1]]


def fill(ops, plan: Plan, seed: int, filters: tuple, replacement: bool, k: int):
    """What draws into a plan's places give, a level after another, and the finished tree."""
    places = torch.full((3, len(plan.children)), -1, dtype=torch.int64)
    places[:2, 0] = 0
    nodes, values = ops.new_tree(7, len(plan.children), 1.0)
    generator = torch.Generator().manual_seed(seed)
    rows, levels = 1, []
    while rows:
        log_probs, ids = scores(seed + len(levels), rows, 30), torch.arange(30) + 100
        uniforms = torch.rand(rows, k, dtype=torch.float64, generator=generator)
        args = (log_probs, ids, uniforms, *filters, replacement)
        levels.append(ops.draw_plan(nodes, values, plan.ranges(), places, *args))
        rows = levels[-1][0].numel()
    return levels, ops.grown_tree(nodes, values)


@compiled_only
@pytest.mark.parametrize("filters", FILTERS[:6])
@pytest.mark.parametrize("replacement", [False, True])
def test_plans_are_filled_alike(filters: tuple, replacement: bool) -> None:
    for seed in range(10):
        expansion = [1 + seed % 4, 2, 3, 1][: 1 + seed % 4]
        args = (expansion_plan(expansion), seed, filters, replacement, 2 + seed % 3)
        (got, tree), (wanted, reference) = fill(grow, *args), fill(reference_grow, *args)
        for level, other in zip(got, wanted, strict=True):
            for i, each in enumerate(level):
                if i == 4:  # q
                    torch.testing.assert_close(each, other[4], rtol=2e-6, atol=1e-9)
                else:
                    assert torch.equal(torch.as_tensor(each), torch.as_tensor(other[i]))
        assert all(torch.equal(a, b) for a, b in zip(tree[:2], reference[:2], strict=True))
        assert tree[2:] == reference[2:]


@pytest.mark.parametrize("ops", [grow, reference_grow])
def test_a_plan_is_filled_from_the_law_of_its_draws(ops) -> None:
    """Every point of a grid over the unit square: ordered pairs without replacement, and with it; a
    place without a token stays empty."""
    p = torch.tensor([0.5, 0.3, 0.2])
    grid = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    for replacement in (False, True):
        shares = torch.zeros(3, 3)
        for pair in torch.cartesian_prod(grid, grid):
            nodes, values = ops.new_tree(7, 3, 1.0)
            places = torch.tensor([[0, -1, -1], [0, -1, -1], [-1, -1, -1]])
            plan = torch.tensor([[1, 0, 0], [2, 0, 0]])
            args = (p.log()[None], torch.tensor([9, 8, 7]), pair[None], 1.0, 0, 1.0, 0.0)
            *_, q, columns, below, sound = ops.draw_plan(
                nodes, values, plan, places, *args, replacement
            )
            assert sound
            torch.testing.assert_close(q, p[None])
            a, b = columns[0].tolist()
            shares[a, b] += 1 / 400
            assert below.tolist() == [[1, 1 if a == b else 2]]
            tokens = ops.grown_tree(nodes, values)[0][0].tolist()
            assert tokens == [7, *dict.fromkeys((9 - a, 9 - b))]
        wanted = p[:, None] * p if replacement else p[:, None] * p / (1 - p[:, None])
        if not replacement:
            wanted.fill_diagonal_(0.0)
        torch.testing.assert_close(shares, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("ops", [grow, reference_grow])
def test_a_plan_draws_no_more_than_there_is(ops) -> None:
    """Three places, two tokens; no finite score, no draw."""
    plan = expansion_plan([3])
    places = torch.full((3, 4), -1, dtype=torch.int64)
    places[:2, 0] = 0
    rest = (torch.arange(2), torch.rand(1, 3, dtype=torch.float64), 1.0, 0, 1.0, 0.0, False)
    nodes, values = ops.new_tree(7, 4, 1.0)
    even = torch.full((1, 2), math.log(0.5))
    drawn = ops.draw_plan(nodes, values, plan.ranges(), places.clone(), even, *rest)
    *_, columns, below, sound = drawn
    assert sound
    assert sorted(columns[0, :2].tolist()) == [0, 1]
    assert (int(columns[0, 2]), below.tolist()) == (-1, [[1, 2, -1]])
    nodes, values = ops.new_tree(7, 4, 1.0)
    bad = torch.tensor([[0.0, math.nan]])
    assert not ops.draw_plan(nodes, values, plan.ranges(), places, bad, *rest)[-1]


@compiled_only
@pytest.mark.parametrize("weight", [1.0, 0.7, 0.2])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sibling_chances(dtype: torch.dtype, replacement: bool, weight: float) -> None:
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        p = torch.rand(12, dtype=dtype, generator=generator)
        p[torch.rand(12, generator=generator) < 0.3] = 0
        ids = torch.randperm(12, generator=generator)[:6]
        q = torch.rand(6, generator=generator)
        k = seed % 5
        uniforms = torch.rand(1, max(k, 1), dtype=torch.float64, generator=generator)
        columns = reference_draw.draw_rows(q[None], uniforms, [k], None, replacement)[
            0, :k
        ].tolist()
        points = torch.randperm(12, generator=generator)[: seed % 4].tolist()
        if not columns and not points:
            continue
        tokens = [*points, *(int(ids[c]) for c in columns)]
        args = (p, tokens, columns, ids, q, replacement, weight)
        got, wanted = draw.sibling_chances(*args), reference_draw.sibling_chances(*args)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)


@compiled_only
def test_sibling_chances_where_nothing_is_left() -> None:
    """All of p on the points; q equal to p; a column that q cannot draw; the support runs out."""
    empty, none = torch.empty(0, dtype=torch.int64), torch.empty(0)
    p = torch.tensor([0.1, 0.2, 0.7])
    ids, q = torch.arange(3), torch.tensor([0.1, 0.2, 0.7])
    cases = [
        (p, [0, 2, 1], [], empty, none, False, 1.0),
        (p, [0, 2, 1], [], empty, none, False, 0.5),
        (p, [1, 1, 0], [], empty, none, False, 1.0),
        (p, [1], [1], ids, q, False, 1.0),
        (p, [1], [0], ids, q, False, 1.0),
        (p, [1], [1], ids, torch.tensor([1.0, 0.0, 1.0]), False, 1.0),
        (p, [1, 1], [1, 1], ids, q, False, 0.4),
        (p, [0, 1, 2, 0], [0, 1, 2, 0], ids, torch.tensor([0.9, 0.05, 0.05]), False, 1.0),
    ]
    for case in cases:
        got, wanted = draw.sibling_chances(*case)[0], reference_draw.sibling_chances(*case)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8, equal_nan=True)


def run(ops, kind: str, seed: int, size: int, width: int, least: float, shared: bool):
    """A tree of a few levels grown by ``ops``: frontiers, rows to verify and counts; and numbers
    that rounding may change, masses and path values."""
    logarithms = kind in ("eagle2", "ddd")
    nodes, values = ops.new_tree(7, 2000, 0.0 if logarithms else 1.0)
    rows, frontiers, masses = 1, [], []
    for level in range(4):
        log_probs = scores(100 * seed + level, rows, 25)
        best = torch.topk(log_probs - 0.1, width)
        if kind == "drawn":
            generator = torch.Generator().manual_seed(seed + level)
            uniforms = torch.rand(rows, width, dtype=torch.float64, generator=generator)
            *frontier, _, mass = ops.grow_drawn(
                nodes, values, log_probs, best.values, torch.arange(25), uniforms,
                size, least, 0.8, 0, 1.0, 0.0, shared,
            )  # fmt: skip
        else:
            *frontier, mass = ops.grow_best(
                nodes, values, best.values, best.indices, size, width, least, logarithms,
                kind == "ddd",
            )  # fmt: skip
        frontiers.append([each.tolist() for each in frontier])
        masses.append(mass)
        rows = frontier[0].numel()
        if not rows:
            break
    rows, paths, drawn, distinct = ops.grown_tree(nodes, values)
    assert paths.tolist() == sorted(paths.tolist(), reverse=True)
    return (frontiers, rows.tolist(), drawn, distinct), [*masses, *paths.tolist()]


@compiled_only
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["eagle2", "ddd", "dyspec", "drawn"])
def test_trees_grow_alike(kind: str, shared: bool) -> None:
    for seed in range(25):
        size, width = 1 + seed % 12, 1 + seed % 5
        least = 0.0 if seed % 2 or kind in ("eagle2", "ddd") else 0.05
        args = (kind, seed, size, width, least, shared)
        (got, numbers), (wanted, expected) = run(grow, *args), run(reference_grow, *args)
        assert got == wanted
        assert numbers == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ops", [grow, reference_grow])
def test_what_is_worth_the_least_is_filled_and_expanded(ops) -> None:
    nodes, values = ops.new_tree(7, 100, 1.0)
    certain, ids = torch.zeros(1, 1), torch.tensor([[5]])
    tokens, *_ = ops.grow_best(nodes, values, certain, ids, 2, 1, 1.0, False, False)
    assert tokens.tolist() == [5]


@compiled_only
@pytest.mark.parametrize("ops", [grow, reference_grow])
def test_scores_that_are_no_numbers(ops) -> None:
    nodes, values = ops.new_tree(7, 100, 1.0)
    bad = torch.full((1, 3), math.nan)
    ids = torch.arange(3)
    assert math.isnan(ops.grow_best(nodes, values, bad, ids[None], 4, 3, 0.0, True, False)[-1])
    nodes, values = ops.new_tree(7, 100, 1.0)
    uniforms = torch.rand(1, 3, dtype=torch.float64)
    args = (nodes, values, bad, bad, ids, uniforms, 4, 0.0, 1.0, 0, 1.0, 0.0, False)
    assert math.isnan(ops.grow_drawn(*args)[-1])


@compiled_only
def test_arguments_that_do_not_fit() -> None:
    nodes, values = grow.new_tree(7, 8, 1.0)
    log_q, ids = torch.zeros(1, 9), torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(ValueError, match="room for 9 more"):
        torch.ops.dynaspec.grow_best(nodes, values, log_q, ids, 4, 9, 0.0, True, False)
    two, ids = torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected 1 rows, got 2"):
        torch.ops.dynaspec.grow_best(nodes, values, two, ids, 4, 1, 0.0, True, False)
    p, ids, q = torch.rand(4), torch.tensor([0, 9]), torch.rand(2)
    with pytest.raises(ValueError, match=r"ids within \[0, 4\)"):
        draw.sibling_chances(p, [0], [0], ids, q)
    with pytest.raises(ValueError, match="columns"):
        draw.sibling_chances(p, [0], [5], torch.tensor([0, 1]), q)
    with pytest.raises(ValueError, match="weight"):
        draw.sibling_chances(p, [0], [0], torch.tensor([0, 1]), q, False, 1.5)
    with pytest.raises(ValueError, match="counts"):
        draw.draw_rows(torch.rand(1, 3), torch.rand(1, 2, dtype=torch.float64), [3], None, False)


@pytest.mark.parametrize("weight", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("points", [(), (2,), (4, 1)])
@pytest.mark.parametrize("ops", [draw, reference_draw])
def test_a_node_passes_on_its_weight_times_p(ops, points, replacement: bool, weight: float) -> None:
    """Every ordered draw of three from four of six tokens, the target's mass in and outside them:
    what is emitted through the children or at the node itself has the law weight * p."""
    p = torch.tensor([0.05, 0.3, 0.15, 0.2, 0.1, 0.2], dtype=torch.float64)
    ids = torch.tensor([3, 0, 4, 2])
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    emitted = torch.zeros(6, dtype=torch.float64)
    for columns in itertools.product(range(4), repeat=3):
        if not replacement and len(set(columns)) < 3:
            continue
        probability, left = 1.0, 1.0
        for column in columns:
            probability *= float(q[column]) / (1.0 if replacement else left)
            left -= float(q[column])
        tokens = [*points, *(int(ids[column]) for column in columns)]
        chances, residual = ops.sibling_chances(
            p, tokens, list(columns), ids, q, replacement, weight
        )
        for token, chance in zip([*tokens, None], chances.tolist(), strict=True):
            if token is not None:
                emitted[token] += probability * min(chance, 1.0)
                probability *= 1.0 - min(chance, 1.0)
            elif probability * chance > 0:
                emitted += probability * chance * residual / residual.sum()
    torch.testing.assert_close(emitted, weight * p, rtol=0, atol=1e-12)
