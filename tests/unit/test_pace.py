"""The size of the next round, by hand-made tables and texts."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from random import Random

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.tuning.account import ALLOWANCE, MEASURED_ALLOWANCE, SHARE
from dynaspec_cli.tuning.costs import CostTable
from dynaspec_cli.tuning.pace import LONGEST_PAUSE, PAUSE, Pace, Round
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
            accepted = int(owed)
            pace.observe(tree(values[:size]), Round(min(size, 4), 1, size, accepted, 1 + accepted))
            owed -= accepted
        else:
            pace.skip(1)
    return asked


GOOD = [0.8, 0.64, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.05] + [0.02] * 7


def test_interpolation_never_falls():
    table = CostTable((1, 3, 5), (10.0, 9.0, 13.0), 0.5)
    assert [table.verify_ms(n) for n in (1, 2, 3, 4, 5, 7)] == pytest.approx(
        [10.0, 10.0, 10.0, 11.0, 13.0, 17.0]
    )
    assert table.round_ms(4, 2) == pytest.approx(14.0)
    learning = replace(table, base_ms=0.7)
    assert learning.round_ms(4, 2) == pytest.approx(14.7)
    assert learning.round_ms(4, 0) == table.round_ms(4, 0)  # lookup's alone
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


def round_ms(costs: CostTable, size: int, steps: int, read: int) -> float:
    """By the table, written out again."""
    drafting = costs.base_ms + steps * costs.draft_ms if steps else 0.0
    return costs.verify_ms(1 + size) + drafting + (read - 1) * costs.read_ms


@pytest.mark.parametrize("seed", range(40))
def test_drafting_never_costs_more_than_its_overdraft(seed):
    """Whatever is accepted, and whenever: at every moment the request has taken at most SHARE more
    than plain decoding, and the allowance of passes, by the table."""
    random = Random(seed)
    slope = random.choice((0.01, 0.1, 0.3, 0.6))
    rows = (1, 2, 3, 5, 9, 17)
    costs = CostTable(
        rows,
        tuple(10.0 * (1 + slope * (n - 1)) for n in rows),
        random.choice((0.0, 0.3, 3.0)),
        random.choice((0.0, 0.05, 0.4)),
        random.choice((0.0, 0.5, 4.0)),
    )
    depth = random.choice((2, 6))
    measured = seed % 2 == 1
    pace = Pace(costs, 16, depth, path_values((0.63, 0.11, 0.06), 16, depth), measured)
    allowance = MEASURED_ALLOWANCE if measured else ALLOWANCE
    spent = tokens = 0.0
    chance, unread, drafted = random.random(), 1, 0
    for _ in range(600):
        if random.random() < 0.02:
            chance = random.choice((0.0, random.random(), 1.0))  # the text changes
        read = min(unread, 64)
        size = pace.next(read)
        accepted = 0
        if size:
            steps = random.randint(1, min(size, depth))
            while accepted < steps and random.random() < chance:
                accepted += 1
            estimates = sorted((random.random() for _ in range(size)), reverse=True)
            pace.observe(tree(estimates), Round(steps, read, size, accepted, 1 + accepted))
            spent += round_ms(costs, size, steps, read)
            unread, drafted = 1 + accepted, drafted + 1
        else:
            pace.skip(1)
            spent += costs.verify_ms(1)
            unread += 1
        plain = (tokens + 1 + accepted) * costs.verify_ms(1)
        assert spent <= plain * (1 + SHARE) + allowance * costs.verify_ms(1) + 1e-9
        tokens += 1 + accepted
    assert pace.account.balance == pytest.approx(tokens * costs.verify_ms(1) - spent)


def test_what_was_saved_pays_for_larger_trees():
    """Nodes that cost nothing to speak of may be many from the first round on; where they cost,
    the first round is small."""
    free = CostTable((1, 17), (10.0, 10.5), 0.05)
    assert Pace(free, 16, 6, GOOD).next() == 16
    dear = CostTable((1, 2, 9, 17), (10.0, 11.0, 25.0, 45.0), 0.3)
    values = [0.99] * 16
    asked = run(Pace(dear, 16, 6, values), 30, values, 1.0)
    assert asked[0] <= 4
    assert asked[-1] > asked[0]


def test_a_drafter_that_has_much_to_read_is_tried_when_that_can_be_afforded():
    costs = CostTable((1, 2, 3, 5), (10.0, 11.0, 12.0, 14.0), 0.5, 0.2)
    pace = Pace(costs, 4, 4, GOOD[:4])
    assert pace.next(64) == 0  # 12.6 ms to read, where 8 may be lost
    assert pace.next(8) > 0
    assert not pace.affords(64)
    pace.account.enter(13.0, 1)
    assert pace.affords(64)
    assert pace.next(64) > 0
