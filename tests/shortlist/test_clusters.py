"""Clusters: a partition, balanced as stated, spherical, reproducible."""

from __future__ import annotations

import math

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.shortlist.clusters import build_clusters
from dynaspec_cli.shortlist.dynaspec import cluster_order


def grouped_head(groups=6, each=20, noise=0.05, seed=0):
    """Rows in clear directions with lengths from 0.1 to 10, which a spherical clustering must not
    see."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.nn.functional.normalize(torch.randn(groups, 16, generator=g), dim=1)
    labels = torch.arange(groups).repeat_interleave(each)
    rows = axes[labels] + noise * torch.randn(groups * each, 16, generator=g)
    lengths = 10 ** (2 * torch.rand(groups * each, 1, generator=g) - 1)
    shuffle = torch.randperm(groups * each, generator=g)
    return (rows * lengths)[shuffle], labels[shuffle]


def test_directions_are_found_whatever_the_lengths():
    head, labels = grouped_head()
    clusters = build_clusters(head, 6, torch.arange(120), epochs=30)
    found = clusters.labels()
    for label in range(6):
        assert len(set(found[labels == label].tolist())) == 1
    torch.testing.assert_close(clusters.centers.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("count", [1, 2, 7, 50, 97])
@pytest.mark.parametrize("balance", [1.0, 1.5, 3.0])
def test_a_partition_within_the_stated_balance(count, balance):
    g = torch.Generator().manual_seed(count)
    head = torch.randn(97, 8, generator=g).bfloat16()
    priority = torch.randperm(97, generator=g)
    clusters = build_clusters(head, count, priority, balance=balance, epochs=2)
    assert clusters.num_clusters == count
    assert sorted(clusters.tokens.tolist()) == list(range(97))
    sizes = torch.diff(clusters.offsets)
    assert sizes.min() >= 0
    assert sizes.max() <= math.ceil(balance * 97 / count)
    rank = priority.argsort()
    for lo, hi in zip(clusters.offsets[:-1].tolist(), clusters.offsets[1:].tolist(), strict=True):
        inside = rank[clusters.tokens[lo:hi].long()].tolist()
        assert inside == sorted(inside)


def test_frequent_tokens_get_the_place_when_a_cluster_is_full():
    head = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 2)
    clusters = build_clusters(
        head, 2, torch.tensor([5, 4, 3, 2, 1, 0, 6, 7]), balance=1.0, epochs=9
    )
    labels = clusters.labels()
    assert len({int(labels[t]) for t in (5, 4, 3, 2)}) == 1
    assert int(labels[0]) == int(labels[1]) != int(labels[5])


def test_the_same_seed_gives_the_same_clusters():
    head, _ = grouped_head(noise=1.0)
    a, b = (build_clusters(head, 9, torch.arange(120), seed=3) for _ in range(2))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.offsets, b.offsets)


def test_progress_runs_to_the_end():
    seen = []
    head, _ = grouped_head()
    build_clusters(
        head, 4, torch.arange(120), progress=lambda phase, share: seen.append((phase, share))
    )
    assert ("cluster centres", 1.0) in seen
    assert ("assignment", 1.0) in seen
    assert all(0 < share <= 1 for _, share in seen)


def test_impossible_requests_are_refused():
    head = torch.randn(10, 4)
    with pytest.raises(
        UsageError, match=r"--clusters: expected 1 to 10 \(the vocabulary\), got 11"
    ):
        build_clusters(head, 11, torch.arange(10))
    with pytest.raises(UsageError, match="--clusters"):
        build_clusters(head, 0, torch.arange(10))
    with pytest.raises(UsageError, match="balance"):
        build_clusters(head, 2, torch.arange(10), balance=0.5)
    with pytest.raises(DynaSpecError, match="permutation"):
        build_clusters(head, 2, torch.zeros(10, dtype=torch.int64))


def test_the_core_leads_the_order_and_belongs_to_no_cluster():
    g = torch.Generator().manual_seed(0)
    tokens, offsets = torch.randperm(30, generator=g), torch.tensor([0, 9, 9, 20, 30])
    frequency = torch.randperm(30, generator=g)
    order, borders = cluster_order(frequency, 5, tokens, offsets)
    assert order[:5].tolist() == frequency[:5].tolist()
    assert sorted(order.tolist()) == list(range(30))
    assert borders[0] == 5
    assert borders[-1] == 30
    core = set(frequency[:5].tolist())
    for c in range(4):
        members = set(tokens[offsets[c] : offsets[c + 1]].tolist()) - core
        assert set(order[borders[c] : borders[c + 1]].tolist()) == members
