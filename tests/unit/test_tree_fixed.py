"""Static trees: Sequoia's program against brute force, SpecInfer's expansion, plans filled with
tokens."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, TreePolicy
from dynaspec_cli.tree.acceptance import EXAMPLE
from dynaspec_cli.tree.fixed import Plan
from dynaspec_cli.tree.registry import create_tree
from dynaspec_cli.tree.sequoia import greedy_plan, optimal_plan, programmed_plan
from dynaspec_cli.tree.specinfer import default_plan, expansion_plan

FALLING = (0.5, 0.2, 0.15, 0.05)
RISING = (0.1, 0.45, 0.02, 0.3)
WITH_ZERO = (0.4, 0.0, 0.4)


def plan_value(plan: Plan, acceptance: tuple[float, ...]) -> float:
    """Expected tokens: the sum over places of the product of acceptances on the way there."""

    def below(place: int) -> float:
        return 1.0 + sum(
            acceptance[b] * below(child) for b, child in enumerate(plan.children[place])
        )

    return below(0)


def plan_depth(plan: Plan, place: int = 0) -> int:
    return max((1 + plan_depth(plan, child) for child in plan.children[place]), default=0)


@cache
def best_value(nodes: int, depth: int, acceptance: tuple[float, ...]) -> float:
    """Brute force: the largest value of a tree of exactly ``nodes`` nodes with its root, over every
    way to share the nodes out among the root's children."""
    if nodes == 1:
        return 1.0
    if depth == 0:
        return -math.inf
    best = -math.inf
    for children in range(1, len(acceptance) + 1):
        for cuts in itertools.combinations(range(1, nodes - 1), children - 1):
            parts = [b - a for a, b in itertools.pairwise((0, *cuts, nodes - 1))]
            value = 1.0
            for rate, part in zip(acceptance, parts, strict=False):
                inner = best_value(part, depth - 1, acceptance)
                value += rate * inner if inner > -math.inf else -math.inf
            best = max(best, value)
    return best


@pytest.mark.parametrize("acceptance", [FALLING, RISING, WITH_ZERO, (0.9,)])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_sequoia_is_optimal(acceptance: tuple[float, ...], depth: int, size: int) -> None:
    expected = max(best_value(n, depth, acceptance) for n in range(2, size + 2))
    for make in (programmed_plan, optimal_plan):
        plan, value = make(acceptance, size, depth)
        assert value == pytest.approx(expected, abs=1e-12)
        assert plan_value(plan, acceptance) == pytest.approx(expected, abs=1e-12)
        assert 1 <= plan.num_nodes <= size
        assert plan_depth(plan) <= depth
        # Places are numbered breadth first: children follow, in order.
        assert [c for below in plan.children for c in below] == list(range(1, plan.num_nodes + 1))


@pytest.mark.parametrize(("size", "depth"), [(16, 6), (40, 3), (64, 20), (100, 10)])
def test_greedy_plan_equals_the_program(size: int, depth: int) -> None:
    greedy, value = greedy_plan(EXAMPLE, size, depth)
    program, expected = programmed_plan(EXAMPLE, size, depth)
    assert value == pytest.approx(expected, abs=1e-12)
    assert plan_value(greedy, EXAMPLE) == pytest.approx(expected, abs=1e-12)
    assert greedy.num_nodes == program.num_nodes == size


def test_a_rising_acceptance_is_not_planned_greedily() -> None:
    """A first child that is never accepted stands before one that nearly always is."""
    plan, expected = optimal_plan((0.0, 0.9), 4, 2)
    assert expected == pytest.approx(1 + 0.9 + 0.81)
    assert plan.children == ((1, 2), (), (3, 4), (), ())


def test_sequoia_where_nothing_is_ever_accepted() -> None:
    for make in (programmed_plan, optimal_plan):
        plan, value = make((0.0, 0.0), 8, 4)
        assert plan.num_nodes == 1
        assert value == 1.0


def test_default_acceptance_is_a_sub_distribution() -> None:
    assert sum(EXAMPLE) < 1
    assert list(EXAMPLE) == sorted(EXAMPLE, reverse=True)


def test_expansion_plan() -> None:
    plan = expansion_plan((2, 1, 3))
    assert plan.children == (
        (1, 2),
        (3,),
        (4,),
        (5, 6, 7),
        (8, 9, 10),
        *((),) * 6,
    )


PAPER = (1, 1, 3, 1, 1, 1, 1, 1)


def paths(plan: Plan) -> list[int]:
    """Depth of each leaf, branch after branch."""
    depths: list[int] = []

    def down(place: int, depth: int) -> None:
        if not plan.children[place]:
            depths.append(depth)
        for child in plan.children[place]:
            down(child, depth + 1)

    down(0, 0)
    return depths


def default(size: int, depth: int, width: int) -> Plan:
    return default_plan(TreeConfig("specinfer", size=size, depth=depth, width=width))


def test_the_papers_expansion_at_its_own_size() -> None:
    assert default(20, 8, 3) == default(20, 9, 16) == expansion_plan(PAPER)


@pytest.mark.parametrize(
    ("size", "depth", "width", "leaves"),
    [
        (64, 8, 16, [8] * 10 + [4]),  # 2 + 10 * 6 + 2
        (8, 6, 4, [6, 4]),
        (7, 6, 4, [6, 3]),
        (1, 1, 1, [1]),
        (5, 2, 3, [2, 2, 2, 1]),
        (5, 1, 4, [1, 1, 1, 1]),
    ],
)
def test_default_plan_has_the_size_asked_for(
    size: int, depth: int, width: int, leaves: list[int]
) -> None:
    plan = default(size, depth, width)
    assert paths(plan) == leaves
    assert plan.num_nodes == min(size, 4 if depth == 1 else size)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("size", [2, 9, 33, 64, 100, 200])
def test_default_plan_is_full_where_it_can_be(size: int, width: int) -> None:
    """Where one level's branches do not suffice, the levels above it branch too."""
    plan = default(size, 8, width)
    assert plan.num_nodes == size
    assert plan.width <= width
    assert [c for below in plan.children for c in below] == list(range(1, size + 1))


def test_an_expansion_too_large_for_the_tree() -> None:
    cases = (
        ((3, 3, 3), 6, "got 39 on 3"),
        ((64,) * 5, 6, "64,64,64,64,64"),
        ((1, 1, 1), 2, "got 3 on 3"),  # few enough, on too many levels
    )
    for expansion, depth, found in cases:
        config = TreeConfig("specinfer", size=16, depth=depth, width=4, expansion=expansion)
        with pytest.raises(UsageError, match="--tree-expansion") as caught:
            create_tree(config, SamplingConfig(0.0))
        assert found in str(caught.value)


def grow(policy: TreePolicy, vocab: int, seed: int = 0) -> tuple[DraftTree, list[int]]:
    """(tree, rows of each draft step) on random distributions over ids 100 .. 100 + vocab."""
    generator = torch.Generator().manual_seed(seed)
    state, rows, steps = policy.begin(7), 1, []
    while True:
        steps.append(rows)
        log_probs = torch.log_softmax(torch.randn(rows, vocab, generator=generator), -1)
        best = torch.topk(log_probs, min(policy.width, vocab))
        frontier = policy.grow(
            state,
            DraftHeadOutput(
                best.values, best.indices + 100, vocab, log_probs, torch.arange(100, 100 + vocab)
            ),
        )
        if frontier is None:
            return policy.finish(state), steps
        rows = frontier.tokens.numel()


def child_counts(tree: DraftTree) -> list[int]:
    parents = tree.parents.tolist()
    return [parents.count(row) for row in range(len(parents))]


@pytest.mark.parametrize("sampling", [SamplingConfig(0.0), SamplingConfig(1.0)])
def test_sequoia_fills_its_plan(sampling: SamplingConfig) -> None:
    config = TreeConfig("sequoia", size=16, depth=6, width=4)
    plan, _ = optimal_plan(EXAMPLE[:4], 16, 6)
    tree, steps = grow(create_tree(config, sampling), vocab=50)
    assert child_counts(tree) == [len(below) for below in plan.children]
    assert len(steps) == plan_depth(plan)
    assert (tree.q is None) == sampling.greedy
    if tree.q is not None:
        assert not tree.q.replacement, "drawn without replacement"
        assert tree.q.drawn == tree.q.distinct == tree.num_nodes


def test_places_without_tokens_stay_empty() -> None:
    """A shortlist of two tokens under a plan of four children."""
    config = TreeConfig("sequoia", size=16, depth=3, width=4)
    for sampling in (SamplingConfig(0.0), SamplingConfig(1.0)):
        tree, _ = grow(create_tree(config, sampling), vocab=2)
        assert max(child_counts(tree)) == 2
        assert tree.num_nodes >= 2


def test_specinfer_verifies_a_repeated_draw_once() -> None:
    """Three draws from two tokens: a token is one node, with all its draws on record."""
    config = TreeConfig("specinfer", size=9, depth=2, width=3, expansion=(3, 2))
    for seed in range(20):
        sampling = SamplingConfig(1.0, seed=seed)
        tree, _ = grow(create_tree(config, sampling), vocab=2, seed=seed)
        assert tree.q.replacement
        assert tree.q.drawn == 3 + 2 * 3
        assert tree.q.distinct == tree.num_nodes
        assert len(tree.q.nodes[0].draws) == 3
        assert {draw.row for draw in tree.q.nodes[0].draws} == {
            row for row in range(1, tree.num_nodes + 1) if int(tree.parents[row]) == 0
        }
        # A token has the children of all its draws.
        rows = [draw.row for draw in tree.q.nodes[0].draws]
        for row, below in tree.q.nodes.items():
            assert not row or len(below.draws) == 2 * rows.count(row)
        tokens = [int(tree.tokens[draw.row]) for draw in tree.q.nodes[0].draws]
        columns = [int(tree.q.nodes[0].ids[draw.column]) for draw in tree.q.nodes[0].draws]
        assert tokens == columns


def test_specinfer_greedy_takes_the_best_in_order() -> None:
    config = TreeConfig("specinfer", size=14, depth=6, width=4)
    tree, steps = grow(create_tree(config, SamplingConfig(0.0)), vocab=50)
    assert child_counts(tree)[:3] == [1, 1, 3]
    assert steps == [1, 1, 1, 3, 3, 3]
    assert tree.q is None


@pytest.mark.parametrize("policy", ["sequoia", "specinfer"])
def test_greedy_places_hold_the_best_tokens_in_order(policy: str) -> None:
    """Each level's candidates say which row they are of: id = 100 * row + rank."""
    fixed = create_tree(TreeConfig(policy, size=12, depth=4, width=3), SamplingConfig(0.0))
    assert not fixed.needs_distribution
    state, rows = fixed.begin(7), 1
    expected: list[tuple[int, int]] = []
    while rows:
        ids = 100 * torch.arange(rows)[:, None] + torch.arange(fixed.width)
        frontier = fixed.grow(state, DraftHeadOutput(-torch.rand(ids.shape), ids, 1000))
        expected += [(100 * i + j, i) for i in range(rows) for j in range(fixed.width)]
        rows = 0 if frontier is None else frontier.tokens.numel()
        if frontier is not None:
            assert set(frontier.tokens.tolist()) <= {token for token, _ in expected}
    tree = fixed.finish(state)
    by_parent: dict[int, list[int]] = {}
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        by_parent.setdefault(parent, []).append(token)
    for tokens in by_parent.values():
        first = tokens[0]
        assert first % 100 == 0
        assert tokens == list(range(first, first + len(tokens)))


def test_records_of_rows_without_draws() -> None:
    policy = create_tree(TreeConfig("sequoia", size=6, depth=2, width=3), SamplingConfig(1.0))
    assert policy.needs_distribution
    tree, _ = grow(policy, vocab=20)
    inner = sorted({parent for parent in tree.parents.tolist() if parent >= 0})
    assert list(tree.q.nodes) == inner
    assert len(tree.q.nodes) == len(inner)
    leaf = next(row for row in range(tree.num_nodes + 1) if row not in inner)
    for row in (leaf, -1, tree.num_nodes + 1, tree.num_nodes + 5):
        with pytest.raises(KeyError):
            tree.q.nodes[row]
    for row in inner:
        below = [child for child, parent in enumerate(tree.parents.tolist()) if parent == row]
        node = tree.q.nodes[row]
        assert [draw.row for draw in node.draws] == below
        assert [int(node.ids[draw.column]) for draw in node.draws] == tree.tokens[below].tolist()
