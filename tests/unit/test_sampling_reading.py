"""Which rows of a tree are read with a row: the cheapest way to where the walk will go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.reading import RowReader, read_at_once

#        0 ─┬─ 1:a ─┬─ 3:b
#           │       └─ 4:c ── 6:d
#           └─ 2:e ─── 5:f
TREE = DraftTree(torch.tensor([9, 0, 1, 2, 3, 4, 5]), torch.tensor([-1, 0, 0, 1, 1, 2, 4]))
CHILDREN = [[1, 2], [3, 4], [5], [], [6], [], []]


class Output:
    """Logits of token t in row r, all else -50; asked for no row's whole."""

    def __init__(self, cheap_rows: int | None, logits: dict[tuple[int, int], float]) -> None:
        self.cheap_rows, self._logits = cheap_rows, logits
        self.asked = 0

    def logits_at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        self.asked += 1
        pairs = zip(rows.tolist(), tokens.tolist(), strict=True)
        return torch.tensor([self._logits.get(pair, -50.0) for pair in pairs])


def reader(
    cheap_rows: int | None, logits: dict[tuple[int, int], float]
) -> tuple[RowReader, Output]:
    output = Output(cheap_rows, logits)
    return RowReader(TREE, output, CHILDREN), output  # type: ignore[arg-type]


# Row 0: e beats a by 1; row 1: c beats b by 3.
LOGITS = {(0, 0): 4.0, (0, 1): 5.0, (1, 2): 0.0, (1, 3): 3.0, (2, 4): 1.0, (4, 5): -2.0}


@pytest.mark.parametrize(
    ("limit", "rows"),
    [(1, [0]), (2, [0, 2]), (3, [0, 2, 5]), (4, [0, 1, 2, 5]), (5, [0, 1, 2, 4, 5]),
     (6, [0, 1, 2, 4, 5, 6])],
)  # fmt: skip
def test_rows_come_by_their_gap_along_the_path(limit: int, rows: list[int]) -> None:
    guess, output = reader(limit, LOGITS)
    assert guess.rows(0) == rows
    assert guess.rows(4)[0] == 4
    assert guess.rows(5) == [5]
    assert output.asked == 1, "the gaps are known after the first time"


def test_gaps_add_up() -> None:
    """b below a costs 1 + 3, more than f below e (0 + 0) and than d (1 + 0 + 0)."""
    guess, _ = reader(6, LOGITS)
    assert 3 not in guess.rows(0)
    far, _ = reader(6, LOGITS | {(0, 1): 4.0 + 10.0})  # a is 10 behind e
    assert far.rows(0) == [0, 1, 2, 4, 5, 6]
    assert reader(3, LOGITS | {(0, 1): 14.0})[0].rows(0) == [0, 2, 5]


def test_a_tree_that_is_cheap_is_read_whole() -> None:
    for cheap in (7, 8, None):
        guess, output = reader(cheap, LOGITS)
        assert read_at_once(TREE, output)  # type: ignore[arg-type]
        assert guess.rows(0) == list(range(7))
        assert output.asked == 0
    assert not read_at_once(TREE, reader(6, LOGITS)[1])  # type: ignore[arg-type]


def test_a_chain_is_read_from_its_root() -> None:
    """The last row's parent is the row before it."""
    chain = DraftTree(torch.tensor([9, 0, 1, 2]), torch.tensor([-1, 0, 1, 2]))
    output = Output(2, {(0, 0): 1.0, (1, 1): 1.0, (2, 2): 1.0})
    guess = RowReader(chain, output, [[1], [2], [3], []])  # type: ignore[arg-type]
    assert guess.rows(0) == [0, 1]
    assert guess.rows(2) == [2, 3]
