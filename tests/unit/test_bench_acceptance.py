"""Acceptance by position as it is measured: the tree, and what a walk through it says."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.bench.acceptance import measuring_tree, walked
from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.tree.acceptance import EXAMPLE
from dynaspec_cli.tree.sequoia import optimal_plan


def _plan(config: TreeConfig) -> tuple[tuple[int, ...], ...]:
    assert config.acceptance is not None
    return optimal_plan(config.acceptance, config.nodes, config.depth)[0].children


@pytest.mark.parametrize("width", [1, 2, 10, 11, 16, 32, 64])
def test_the_root_has_every_child_that_is_measured(width: int) -> None:
    children = _plan(measuring_tree(width))
    assert len(children[0]) == width
    assert any(children[place] for place in children[0])  # and some of them have children


def test_ten_positions_unless_told_otherwise() -> None:
    config = measuring_tree()
    assert (config.acceptance, config.size, config.width) == (EXAMPLE, 68, len(EXAMPLE))


def test_what_a_walk_visits() -> None:
    #  root: 5 6 7; below 6: 8 9; below 9: 5
    tree = DraftTree(torch.tensor([0, 5, 6, 7, 8, 9, 5]), torch.tensor([-1, 0, 0, 0, 2, 2, 5]))
    assert list(walked(tree, [])) == [(3, False)]
    assert list(walked(tree, [5])) == [(1, True)]  # a leaf says nothing more
    assert list(walked(tree, [6])) == [(2, True), (2, False)]
    assert list(walked(tree, [6, 9])) == [(2, True), (2, True), (1, False)]
    assert list(walked(tree, [6, 9, 5])) == [(2, True), (2, True), (1, True)]
