"""The bookkeeping of a tree that grows in Python."""

from __future__ import annotations

import math

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.protocols import DraftHeadOutput
from dynaspec_cli.tree.base import GrowingTree, add_candidates, best_nodes


def candidates(log_q: list[list[float]], ids: list[list[int]]) -> DraftHeadOutput:
    return DraftHeadOutput(torch.tensor(log_q), torch.tensor(ids), 9)


def test_a_new_tree_is_its_root() -> None:
    tree = GrowingTree([7])
    assert (tree.parents, tree.scores, tree.rows) == ([-1], [0.0], [-1])
    assert (tree.frontier, tree.level, tree.stepped, tree.best) == ([0], 0, 0, [])
    assert tree.add(0, 5, -0.5) == 1
    assert (tree.tokens, tree.parents, tree.scores) == ([7, 5], [-1, 0], [0.0, -0.5])
    assert tree.rows == [-1, -1]


def test_frontiers_name_the_parents_cache_rows_and_rows() -> None:
    tree = GrowingTree([7])
    for token in (10, 11, 12):
        tree.add(0, token, 0.0)
    first = tree.expand([1, 3])
    assert first.tokens.tolist() == [10, 12]
    assert first.parents.tolist() == [-1, -1]
    assert first.source.tolist() == [0, 0]
    below = [tree.add(parent, 20 + parent, 0.0) for parent in (1, 3, 3)]
    second = tree.expand(below)
    assert second.tokens.tolist() == [21, 23, 23]
    assert second.parents.tolist() == [0, 1, 1]
    assert second.source.tolist() == [0, 1, 1]
    last = tree.expand([tree.add(below[2], 30, 0.0)])
    assert (last.parents.tolist(), last.source.tolist()) == ([4], [2])
    assert (tree.rows[:4], tree.rows[4:7], tree.stepped) == ([-1, 0, -1, 1], [2, 3, 4], 6)


def test_only_kept_nodes_are_verified() -> None:
    tree = GrowingTree([7])
    for parent, token in ((0, 1), (0, 2), (1, 3), (2, 4), (4, 5)):
        tree.add(parent, token, 0.0)
    kept = tree.tree([2, 4, 5])
    assert kept.tokens.tolist() == [7, 2, 4, 5]
    assert kept.parents.tolist() == [-1, 0, 1, 2]


def test_the_best_of_a_size_and_their_bound() -> None:
    tree = GrowingTree([7])
    assert tree.bound(2) == -math.inf
    tree.offer([(0.5, 3)], 2)
    assert tree.bound(2) == -math.inf
    assert tree.bound(1) == -0.5
    tree.offer([(0.25, 5), (0.5, 1)], 2)
    assert tree.best == [(0.25, 5), (0.5, 1)], "a tie goes to the older node"
    assert tree.bound(2) == -0.5
    assert best_nodes([(0.5, 1), (0.1, 2), (0.3, 3)], 2) == [2, 3]


def test_padding_is_cut_and_the_level_counted() -> None:
    tree = GrowingTree([7])
    log_q, ids = tree.take(candidates([[-1.0, -2.0, -3.0]], [[0, -1, -1]]))
    assert (log_q, ids, tree.level) == ([[-1.0]], [[0]], 1)
    log_q, ids = tree.take(candidates([[-1.0, -2.0]], [[-1, -1]]))
    assert (log_q, ids) == ([[]], [[]])
    with pytest.raises(DynaSpecError, match="candidates for 1 nodes, got 2 rows"):
        tree.take(candidates([[-1.0], [-1.0]], [[1], [2]]))


def test_candidates_above_a_floor() -> None:
    """Path scores; a log-probability above 0 counts as 0; a score equal to the floor is out."""
    tree = GrowingTree([7])
    tree.add(0, 8, -1.0)
    tree.frontier = [0, 1]
    output = candidates([[0.5, -0.5, -2.0], [-0.25, -0.5, -0.75]], [[1, 2, 3], [4, 5, 6]])
    assert add_candidates(tree, output, 3, -1.5) == [(0.0, 2), (0.5, 3), (1.25, 4)]
    assert tree.tokens[2:] == [1, 2, 4]
    assert tree.parents[2:] == [0, 0, 1]
    tree.frontier = [0]
    narrow = candidates([[-0.1, -0.2, -0.3]], [[1, 2, 3]])
    assert len(add_candidates(tree, narrow, 2, -math.inf)) == 2
    with pytest.raises(NotFiniteError):
        add_candidates(tree, candidates([[math.nan]], [[1]]), 2, -math.inf)
