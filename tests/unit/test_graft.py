"""Two trees in one: by paths, not by rows."""

from __future__ import annotations

import random

import torch

from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.verify import Draw, NodeDraft, SampledDrafts
from dynaspec_cli.tree.graft import graft


def random_nodes(draw: random.Random, count: int) -> tuple[list[int], list[int]]:
    """Tokens and parents (-1: the root) of distinct paths."""
    tokens, parents, seen = [], [], set()
    while len(tokens) < count:
        parent, token = draw.randrange(-1, len(tokens)), draw.randrange(4)
        if (parent, token) not in seen:
            seen.add((parent, token))
            tokens.append(token)
            parents.append(parent)
    return tokens, parents


def paths(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(() if parent < 0 else found[parent]), token))
    return found


def test_the_union_of_paths_once_each_and_old_rows_first():
    draw = random.Random(0)
    for _ in range(200):
        a, b = random_nodes(draw, draw.randrange(8)), random_nodes(draw, draw.randrange(8))
        tree = DraftTree(torch.tensor([9, *a[0]]), torch.tensor([-1, *(p + 1 for p in a[1])]))
        joined = graft(tree, *b)
        tokens, parents = joined.tokens.tolist(), joined.parents.tolist()
        n = len(a[0]) + 1
        assert tokens[:n] == tree.tokens.tolist()
        assert parents[:n] == tree.parents.tolist()
        assert all(parent < row for row, parent in enumerate(parents))
        union = paths(tokens[1:], [p - 1 for p in parents[1:]])
        assert len(union) == len(set(union))
        assert set(union) == {*paths(*a), *paths(*b)}


def test_points_stand_before_the_draws_and_share_their_rows():
    ids, q = torch.tensor([1, 2, 3]), torch.tensor([0.5, 0.25, 0.25])
    drafts = SampledDrafts({0: NodeDraft(ids, q, (Draw(0, 1), Draw(1, 2)))}, False)
    tree = DraftTree(torch.tensor([9, 1, 2]), torch.tensor([-1, 0, 0]), drafts)
    joined = graft(tree, (2, 7, 5), (-1, -1, 0))
    assert joined.tokens.tolist() == [9, 1, 2, 7, 5]
    assert joined.parents.tolist() == [-1, 0, 0, 0, 2]
    root, below = joined.q.nodes[0], joined.q.nodes[2]
    assert root.points == (2, 3)
    assert root.draws == (Draw(0, 1), Draw(1, 2))
    assert (below.points, below.draws) == ((4,), ())
    assert drafts.nodes[0].points == ()
