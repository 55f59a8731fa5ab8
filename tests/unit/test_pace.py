"""The size of the next round, by hand-made tables and texts."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.tuning.costs import CostTable
from dynaspec_cli.tuning.pace import LONGEST_PAUSE, PAUSE, Pace
from dynaspec_cli.tuning.prior import path_values

FLAT = CostTable((1, 9, 17), (20.0, 21.0, 31.0), 1.0)  # rows cost little up to nine
STEEP = CostTable((1, 2, 9, 17), (20.0, 27.0, 62.0, 120.0), 3.0)  # one core of AVX2


def tree(values: list[float]) -> DraftTree:
    """Of so many nodes, with these estimates."""
    nodes = torch.arange(len(values) + 1)
    return DraftTree(nodes, nodes - 1, values=tuple(values))


def run(pace: Pace, rounds: int, values: list[float], share: float) -> list[int]:
    """Sizes asked for over rounds whose trees have ``values`` and of whose estimated tokens
    ``share`` are accepted, evenly."""
    asked, owed = [], 0.0
    for _ in range(rounds):
        size = pace.next()
        asked.append(size)
        if size:
            owed += share * sum(values[:size])
            pace.observe(tree(values[:size]), int(owed), min(size, 4))
            owed -= int(owed)
    return asked


GOOD = [0.8, 0.64, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.05] + [0.02] * 7


def test_interpolation_never_falls():
    table = CostTable((1, 3, 5), (10.0, 9.0, 13.0), 0.5)
    assert [table.verify_ms(n) for n in (1, 2, 3, 4, 5, 7)] == pytest.approx(
        [10.0, 10.0, 10.0, 11.0, 13.0, 17.0]
    )
    assert table.round_ms(4, 2) == pytest.approx(14.0)
    assert CostTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    "bad", [((2, 3), (1.0, 1.0), 0.0), ((1, 3), (1.0, 0.0), 0.0), ((1,), (1.0,), float("nan"))]
)
def test_impossible_tables_are_refused(bad):
    with pytest.raises(DynaSpecError, match="cost table"):
        CostTable(*bad)


def test_a_good_drafter_gets_the_size_that_the_machine_likes():
    assert run(Pace(FLAT, 16, 6, GOOD), 40, GOOD, 1.0)[-1] == 8
    assert run(Pace(STEEP, 16, 6, GOOD), 40, GOOD, 1.0)[-1] in (1, 2, 3, 4)


def test_a_bad_drafter_is_hardly_asked():
    asked = run(Pace(STEEP, 8, 6, GOOD[:8]), 2000, GOOD[:8], 0.05)
    drafted = sum(size > 0 for size in asked)
    assert drafted < 0.02 * len(asked)
    assert max(asked[50:]) <= 2
    pauses = [len(run) for run in "".join("x" if n else "." for n in asked).split("x") if run]
    assert pauses[1] >= PAUSE
    assert max(pauses) <= LONGEST_PAUSE


def test_drafting_comes_back_when_the_text_changes():
    pace = Pace(STEEP, 8, 6, GOOD[:8])
    assert run(pace, 200, GOOD[:8], 0.0)[-1] == 0
    asked = run(pace, 2 * LONGEST_PAUSE, GOOD[:8], 1.2)
    assert asked[-1] > 0
    assert all(asked[-20:])


def test_the_same_counts_give_the_same_sizes():
    a, b = (run(Pace(FLAT, 8, 6, GOOD[:8]), 60, GOOD[:8], 0.7) for _ in range(2))
    assert a == b


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_prior_is_the_best_tree_of_an_acceptance_vector(size):
    acceptance, depth = (0.6, 0.2, 0.1), 3
    paths = [math.prod(path) for n in range(1, depth + 1) for path in product(acceptance, repeat=n)]
    assert path_values(acceptance, size, depth) == pytest.approx(sorted(paths)[::-1][:size])


def test_the_price_of_a_row():
    assert FLAT.row_price == pytest.approx(0.05 / 8)
    dense = CostTable((1, 2, 3, 5, 9), (10.0, 11.0, 12.0, 18.0, 50.0), 1.0)
    assert dense.row_price == pytest.approx(0.2)
    assert CostTable((1,), (5.0,), 0.0).row_price == 0.0
