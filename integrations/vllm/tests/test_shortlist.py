"""The shortlist against a plain reference, alone and in slices, and what it may not do."""

from __future__ import annotations

import pytest
import torch
from folders import random
from reference import PlainShortlist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dynaspec_vllm.shortlist import Shortlist, best_of_ranks
from dynaspec_vllm.slices import borders, slice_clusters, slice_core
from dynaspec_vllm.spec import DraftSpec

ROWS, WIDTH, SIZE = 203, 16, 9
CORE = [7, 150, 3, 80, 199, 12]


def make_spec(recent=11, taken=3, clusters=22, **changes):
    values = {
        "form": "language-model",
        "vocab_size": ROWS,
        "rows": ROWS,
        "target_name": "t",
        "target": {},
        "core": len(CORE),
        "recent": recent,
        "clusters": clusters if taken else 0,
        "cluster_size": SIZE if taken else 0,
        "taken": taken,
    }
    return DraftSpec(**(values | changes))


def make_tensors(spec):
    """Clusters of a random order; the last ones are short."""
    tensors = {"core": torch.tensor(CORE, dtype=torch.int32)}
    if spec.taken:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(4))
        order = order[~torch.isin(order, torch.tensor(CORE))]
        clusters = torch.full((spec.clusters * SIZE,), -1)
        full = (spec.clusters - 2) * SIZE
        clusters[:full] = order[:full]
        clusters = clusters.view(spec.clusters, SIZE)
        clusters[-2, :8], clusters[-1, :9] = order[full : full + 8], order[full + 8 : full + 17]
        tensors |= {
            "clusters": clusters.int(),
            "router": random(spec.clusters, WIDTH, seed=5, scale=1.0),
            "router_bias": random(spec.clusters, seed=6, scale=0.5),
        }
    return tensors


def plain(spec, tensors):
    if not spec.taken:
        return PlainShortlist(CORE, spec.recent)
    clusters = [[row for row in c if row >= 0] for c in tensors["clusters"].tolist()]
    return PlainShortlist(
        CORE, spec.recent, clusters, tensors["router"], tensors["router_bias"], spec.taken
    )


def make(spec, ranks=1, shard=ROWS):
    tensors = make_tensors(spec)
    slices = borders(ROWS, ranks, shard)
    lists = [Shortlist(spec, WIDTH, slices, rank) for rank in range(ranks)]
    for shortlist in lists:
        shortlist.load(tensors, torch.float32)
    return lists, tensors


HEAD = random(ROWS, WIDTH, seed=1, scale=1.0)


@pytest.mark.parametrize("recent", [0, 1, 11])
@pytest.mark.parametrize("taken", [0, 3, 22])
def test_the_best_row_is_the_plain_reference_s(recent, taken):
    spec = make_spec(recent, taken)
    (shortlist,), tensors = make(spec)
    reference = plain(spec, tensors)
    draw = torch.Generator().manual_seed(2)
    for _ in range(40):
        rows = torch.randint(
            -1, ROWS, (int(torch.randint(1, 30, (1,), generator=draw)),), generator=draw
        )
        shortlist.observe(rows)
        reference.observe(rows.tolist())
        hidden = torch.randn(5, WIDTH, generator=draw)
        value, row = shortlist.best(hidden, HEAD)
        # An empty place of the ring scores the last row, which plain sets know nothing of.
        full = len(reference.ring) == recent
        for h, v, r in zip(hidden, value, row, strict=True):
            assert int(r) == reference.best(h, HEAD) or (not full and int(r) == ROWS - 1)
            torch.testing.assert_close(v, HEAD[r] @ h)
    kept = set(shortlist.ring[: shortlist.recent].tolist()) - {ROWS}
    assert kept == set(reference.ring)


def test_all_clusters_and_the_core_are_the_whole_head():
    spec = make_spec(recent=0, taken=22)
    (shortlist,), _ = make(spec)
    hidden = random(50, WIDTH, seed=8, scale=1.0)
    assert shortlist.best(hidden, HEAD)[1].equal((hidden @ HEAD.t()).argmax(1))


def test_a_large_batch_in_parts_is_the_same(monkeypatch):
    (shortlist,), _ = make(make_spec())
    hidden = random(13, WIDTH, seed=8, scale=1.0)
    whole = shortlist.best(hidden, HEAD)
    monkeypatch.setattr("dynaspec_vllm.shortlist.GATHERED", 3 * SIZE * WIDTH * 2)
    for a, b in zip(whole, shortlist.best(hidden, HEAD), strict=True):
        torch.testing.assert_close(a, b)


def test_the_ring_forgets_the_oldest_and_keeps_nothing_twice():
    (shortlist,), _ = make(make_spec(recent=4, taken=0))
    shortlist.observe(torch.tensor([20, 21, 20, 7]))  # 7 is in the core
    shortlist.observe(torch.tensor([22, 23, 22]))
    assert set(shortlist.ring[:4].tolist()) == {20, 21, 22, 23}
    shortlist.observe(torch.tensor([21, 24]))
    assert set(shortlist.ring[:4].tolist()) == {21, 22, 23, 24}
    shortlist.observe(torch.tensor([20]))
    assert set(shortlist.ring[:4].tolist()) == {20, 22, 23, 24}
    shortlist.forget()
    assert set(shortlist.ring[:4].tolist()) == {ROWS}


@pytest.mark.parametrize(("ranks", "shard"), [(2, 102), (3, 128), (4, 64)])
def test_slices_together_hold_the_shortlist_and_nothing_else(ranks, shard):
    spec = make_spec()
    tensors = make_tensors(spec)
    slices = [s for s in borders(ROWS, ranks, shard) if s[0] < s[1]]
    core, clusters, sizes = set(), set(), set()
    for rank, (begin, end) in enumerate(slices):
        mine = slice_core(tensors["core"].long(), slices, rank)
        rows, router, bias = slice_clusters(
            tensors["clusters"], tensors["router"], tensors["router_bias"], slices, rank
        )
        assert int(mine.max()) < end - begin
        assert int(rows.max()) < end - begin
        sizes.add((mine.numel(), rows.shape, router.shape, bias.shape))
        core |= {int(row) + begin for row in mine}
        for piece, score in zip(rows, router, strict=True):
            owner = [i for i, r in enumerate(tensors["router"]) if r.equal(score)]
            if owner:  # else a stand-in
                found = {int(row) + begin for row in piece}
                assert found <= set(tensors["clusters"][owner[0]].tolist())
                clusters |= found
    assert len(sizes) == 1  # one program on every rank
    # A rank without rows of the core lends its first.
    assert set(CORE) <= core <= set(CORE) | {begin for begin, _ in slices}
    assert clusters == set(tensors["clusters"].flatten().tolist()) - {-1}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_choose_among_their_slices(ranks):
    """All rows that one process scores are scored by some rank, and the best of them wins. (With a
    ring that is never full: a rank's own holds as many rows of its slice, and forgets later.)"""
    spec = make_spec(recent=ROWS)
    shard = -(-ROWS // ranks)
    lists, tensors = make(spec, ranks, shard)
    reference = plain(spec, tensors)
    draw = torch.Generator().manual_seed(3)
    for _ in range(20):
        rows = torch.randint(0, ROWS, (9,), generator=draw)
        hidden = torch.randn(6, WIDTH, generator=draw)
        reference.observe(rows.tolist())
        values, found = [], []
        for shortlist in lists:
            shortlist.observe(rows)
            padded = torch.cat([HEAD[shortlist.begin :][:shard], torch.full((5, WIDTH), 100.0)])
            value, row = shortlist.best(hidden, padded)
            assert bool(((row >= shortlist.begin) & (row < shortlist.begin + shortlist.rows)).all())
            values.append(value)
            found.append(row)
        best = best_of_ranks(torch.stack(values, 1), torch.stack(found, 1))
        for h, row in zip(hidden, best, strict=True):
            ours, theirs = HEAD[row] @ h, HEAD[reference.best(h, HEAD)] @ h
            assert ours >= theirs - 1e-5


def step(shortlist):
    def run(ids, hidden, head):
        shortlist.observe(ids)
        return shortlist.best(hidden, head)

    return run


def test_a_rank_s_ring_is_that_of_its_slice():
    spec = make_spec(recent=5, taken=0)
    lists, _ = make(spec, 2, 102)
    draw = torch.Generator().manual_seed(3)
    references = [PlainShortlist([row for row in CORE if row // 102 == r], 5) for r in range(2)]
    for _ in range(30):
        rows = torch.randint(0, ROWS, (4,), generator=draw)
        for rank, (shortlist, reference) in enumerate(zip(lists, references, strict=True)):
            shortlist.observe(rows)
            reference.observe([row for row in rows.tolist() if row // 102 == rank])
            kept = {int(row) + shortlist.begin for row in shortlist.ring[:5]}
            assert kept - {shortlist.begin + shortlist.rows} == set(reference.ring)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("taken", [0, 3])
def test_nothing_waits_for_the_device(device, taken):
    """Traced on fake tensors, whose values nobody can read: a value read back, or a shape that
    hangs on one, raises. Every state is a buffer that the trace writes."""
    spec = make_spec(taken=taken)
    (shortlist,), _ = make(spec)
    with FakeTensorMode(allow_non_fake_inputs=False):
        fake = Shortlist(spec, WIDTH)
        for name, buffer in shortlist.named_buffers():
            empty = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            setattr(fake, name, empty)
        ids = torch.empty(40, dtype=torch.int32, device=device)
        hidden, head = (torch.empty(n, WIDTH, device=device) for n in (8, ROWS))
        graph = make_fx(step(fake))(ids, hidden, head)
        value, row = graph(ids, hidden, head)
    assert (value.shape, row.shape) == ((8,), (8,))
    names = {str(node.target) for node in graph.graph.nodes}
    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")
    assert not [name for name in names if any(part in name for part in forbidden)]


def test_a_graph_traced_once_serves_later_steps():
    """What is captured is replayed with other values: nothing of a step is a constant of it."""
    spec = make_spec()
    (traced,), _ = make(spec)
    (plainly,), _ = make(spec)
    draw = torch.Generator().manual_seed(7)

    def inputs():
        ids = torch.randint(0, ROWS, (6,), generator=draw)
        return ids, torch.randn(4, WIDTH, generator=draw), HEAD

    graph = make_fx(step(traced))(*inputs())
    traced.forget()
    for _ in range(10):
        given = inputs()
        for a, b in zip(graph(*given), step(plainly)(*given), strict=True):
            torch.testing.assert_close(a, b)
    assert traced.ring[:-1].equal(plainly.ring[:-1])


def test_scored_counts_rows():
    assert make(make_spec())[0][0].scored == len(CORE) + 11 + 3 * SIZE
    assert make(make_spec(recent=0, taken=0))[0][0].scored == len(CORE)
