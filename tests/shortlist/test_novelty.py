"""Clusters are asked for while the text is new, and only then."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.protocols import ShortlistQuery
from dynaspec_cli.shortlist.base import in_blocks
from dynaspec_cli.shortlist.novelty import PRIOR, PRIOR_TOKENS, WINDOW, Novelty
from shortlist.tiny import TinyTarget, random_tree, tiny_shortlist


def test_the_share_is_a_mean_that_forgets():
    novelty = Novelty()
    assert novelty.share == PRIOR
    for _ in range(12):
        novelty.observe(False)
    assert novelty.share == pytest.approx(PRIOR * PRIOR_TOKENS / (PRIOR_TOKENS + 12))
    for _ in range(WINDOW):
        novelty.observe(True)
    assert 0.6 < novelty.share < 0.95
    for _ in range(10 * WINDOW):
        novelty.observe(True)
    assert novelty.share == pytest.approx(1.0, abs=1e-3)


def choose(shortlist, state, target, g, depth=1):
    """The rows of one draft step."""
    d = target.hidden_size
    query = ShortlistQuery(depth, torch.randn(2, d, generator=g), torch.tensor([1, 2]))
    selection = shortlist.select(state, query)
    shortlist.score(state, selection, torch.randn(2, d, generator=g), 2)
    return selection


def settle(shortlist, state, target, g, tokens):
    output = target.output(torch.randn(6, target.hidden_size, generator=g))
    tree = random_tree(target.vocab_size, 5, g)
    shortlist.observe(state, tree, output, torch.tensor([0, 1]), tokens)


@pytest.mark.parametrize("router", ["mlp", "token", "centroid", "output"])
def test_clusters_go_when_nothing_is_new_and_come_back(router):
    target = TinyTarget(97)
    shortlist = tiny_shortlist("dynaspec", target, 60, router=router)
    g = torch.Generator().manual_seed(3)
    state = shortlist.begin(torch.tensor([7, 9]), target.output(torch.randn(2, 8, generator=g)))
    core = int(shortlist.head.row_ids[0])
    assert choose(shortlist, state, target, g).shared
    for _ in range(WINDOW):
        settle(shortlist, state, target, g, torch.tensor([core, core]))
    for depth in (1, 2, 3):
        selection = choose(shortlist, state, target, g, depth)
        held = torch.cat([torch.arange(shortlist.core), state.context.rows().long()]).unique()
        assert not selection.shared
        assert selection.size == held.numel()
        assert in_blocks(held, selection.blocks).all()
    for _ in range(WINDOW):
        rows = torch.arange(97)
        new = rows[(rows >= shortlist.core) & ~state.context.holds(rows)][:1]
        settle(shortlist, state, target, g, shortlist.head.row_ids[new].long())
    selection = choose(shortlist, state, target, g)
    assert selection.shared
    assert selection.size > shortlist.core + len(state.context)


def test_a_token_of_the_context_is_not_new():
    target = TinyTarget(97)
    shortlist = tiny_shortlist("dynaspec", target, 60)
    g = torch.Generator().manual_seed(4)
    state = shortlist.begin(torch.tensor([7, 9]), target.output(torch.randn(2, 8, generator=g)))
    before = state.novelty.share
    settle(shortlist, state, target, g, torch.tensor([7, 9]))
    assert state.novelty.share < before


def test_without_a_limit_clusters_are_always_asked_for():
    target = TinyTarget(97)
    shortlist = tiny_shortlist("dynaspec", target, 60)
    shortlist.routed_from = 0.0
    g = torch.Generator().manual_seed(5)
    state = shortlist.begin(torch.tensor([7, 9]), target.output(torch.randn(2, 8, generator=g)))
    core = int(shortlist.head.row_ids[0])
    for _ in range(WINDOW):
        settle(shortlist, state, target, g, torch.tensor([core]))
    assert choose(shortlist, state, target, g).shared
