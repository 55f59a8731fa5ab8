"""Properties of every policy: scores against brute force, caps, isolation of requests, coverage."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli import ops
from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.protocols import ShortlistQuery
from dynaspec_cli.shortlist import registry
from dynaspec_cli.shortlist.base import in_blocks
from dynaspec_cli.shortlist.schedule import BudgetSchedule
from dynaspec_cli.weights.registry import WEIGHT_FORMATS
from shortlist.tiny import POLICIES, TinyTarget, random_tree, tiny_bundle, tiny_shortlist

ROUTERS = ("mlp", "token", "centroid", "output", "none")


def drive(shortlist, target, seed, rounds=6, width=3, depth=4, visit=None):
    """A request of random content; ``visit(state, selection, hidden, output)`` sees every draft
    step."""
    g = torch.Generator().manual_seed(seed)
    v, d = target.vocab_size, target.hidden_size
    prompt = torch.randint(0, v, (7,), generator=g)
    state = shortlist.begin(prompt, target.output(torch.randn(7, d, generator=g)))
    seen = []
    for _ in range(rounds):
        for t in range(1, depth + 1):
            w = 1 if t == 1 else width
            query = ShortlistQuery(
                t, torch.randn(w, d, generator=g), torch.randint(0, v, (w,), generator=g)
            )
            selection = shortlist.select(state, query)
            hidden = torch.randn(w, d, generator=g)
            output = shortlist.score(state, selection, hidden, 3)
            seen.append((output.ids.clone(), output.log_q.clone(), output.size))
            if visit is not None:
                visit(state, selection, hidden, output)
        tree = random_tree(v, 5, g)
        output = target.output(torch.randn(6, d, generator=g))
        settled = torch.randint(0, v, (2,), generator=g)
        shortlist.observe(state, tree, output, torch.tensor([0, 1]), settled)
    return seen


@pytest.mark.parametrize("vocab", [5, 11, 97])
@pytest.mark.parametrize("policy", POLICIES)
def test_scores_equal_a_softmax_over_the_members(policy, vocab):
    target = TinyTarget(vocab)
    shortlist = tiny_shortlist(policy, target)

    def visit(state, selection, hidden, output):
        members = shortlist.contains(state, selection, torch.arange(vocab))
        ids = members.nonzero().squeeze(1)
        assert output.size == ids.numel() > 0
        log_q = torch.log_softmax(hidden @ target.head[ids].t(), -1)
        best = torch.topk(log_q, min(3, ids.numel()))
        torch.testing.assert_close(output.log_q, best.values + shortlist.log_mass)
        assert torch.equal(output.ids, ids[best.indices])
        whole = shortlist.score(state, selection, hidden, 3, whole=True)
        assert torch.equal(whole.all_ids.sort().values, ids)
        torch.testing.assert_close(whole.log_probs.exp().sum(-1), torch.ones(hidden.shape[0]))
        logits = hidden @ target.head[whole.all_ids].t()
        torch.testing.assert_close(whole.log_probs, torch.log_softmax(logits, -1))
        torch.testing.assert_close(whole.log_q, best.values + shortlist.log_mass)
        assert torch.equal(whole.ids, ids[best.indices])

    drive(shortlist, target, seed=1, visit=visit)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("size", [1, 2, 13, 40, 97])
def test_dynaspec_never_exceeds_its_budget(router, size):
    target = TinyTarget(97)
    shortlist = tiny_shortlist("dynaspec", target, size, router=router)

    def visit(state, selection, hidden, output):
        assert 0 < output.size <= max(selection.budget, 1)

    drive(shortlist, target, seed=2, visit=visit)
    assert sum(shortlist.budgets) <= len(shortlist.budgets) * size


@pytest.mark.parametrize("policy", ["nanospec", "fr-spec", "vocabtrim", "pa-fr", "dynaspec"])
@pytest.mark.parametrize("size", [1, 3, 30])
def test_mean_size_over_a_round_stays_within_the_stated_size(policy, size):
    target = TinyTarget(97)
    shortlist = tiny_shortlist(policy, target, size, depth=4)
    sizes = [s for _, _, s in drive(shortlist, target, seed=3)]
    assert sum(sizes) <= size * len(sizes)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_request_leaves_no_trace_in_the_next(policy):
    target = TinyTarget(97)
    fresh = tiny_shortlist(policy, target)
    used = tiny_shortlist(policy, target)
    drive(used, target, seed=4)
    for (a, b, c), (x, y, z) in zip(drive(fresh, target, 5), drive(used, target, 5), strict=True):
        assert torch.equal(a, x)
        assert torch.equal(b, y)
        assert c == z


@pytest.mark.parametrize("policy", ["nanospec", "dynaspec"])
def test_interleaved_requests_do_not_mix(policy):
    target = TinyTarget(97)
    shortlist = tiny_shortlist(policy, target)
    g = torch.Generator().manual_seed(0)
    features = torch.zeros(2, 8)
    a = shortlist.begin(torch.tensor([1, 2]), target.output(features))
    b = shortlist.begin(torch.tensor([3, 4]), target.output(features))
    before = sorted(b.context.rows().tolist())
    output = target.output(torch.randn(10, 8, generator=g))
    shortlist.observe(a, random_tree(97, 9, g), output, torch.tensor([0]), torch.tensor([5]))
    assert sorted(b.context.rows().tolist()) == before


def test_context_tokens_of_dynaspec_are_always_selected():
    target = TinyTarget(97)
    shortlist = tiny_shortlist("dynaspec", target, 60)

    def visit(state, selection, hidden, output):
        rows = state.context.rows().long()
        assert in_blocks(rows, selection.blocks).all()
        assert in_blocks(torch.arange(shortlist.core), selection.blocks).all()

    drive(shortlist, target, seed=6, visit=visit)


def test_router_clusters_are_those_of_highest_maximum_score():
    target = TinyTarget(97)
    shortlist = tiny_shortlist("dynaspec", target, 60, router="output")

    def visit(state, selection, hidden, output):
        scores = (hidden @ shortlist.router.w2.t() + shortlist.router.b2).amax(0)
        offsets = shortlist.offsets.tolist()
        taken = set(range(shortlist.core)) | set(state.context.rows().tolist())
        budget = selection.budget
        for c in sorted(range(len(scores)), key=lambda c: -float(scores[c])):
            grown = taken | set(range(offsets[c], offsets[c + 1]))
            if len(grown) > budget:
                break
            taken = grown
        rows = in_blocks(torch.arange(97), selection.blocks).nonzero().squeeze(1).tolist()
        assert set(rows) == taken

    drive(shortlist, target, seed=7, visit=visit)


def test_pa_fr_shrinks_with_the_position_and_fr_spec_does_not():
    target = TinyTarget(97)
    for policy, constant in (("pa-fr", False), ("fr-spec", True)):
        shortlist = tiny_shortlist(policy, target, 30, depth=5)
        state = shortlist.begin(torch.tensor([0]), target.output(torch.zeros(1, 8)))
        q = torch.zeros(1, 8), torch.tensor([0])
        sizes = [shortlist.select(state, ShortlistQuery(t, *q)).size for t in range(1, 8)]
        assert (len(set(sizes)) == 1) == constant
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[4:] == [sizes[4]] * 3


def test_fr_spec_and_vocabtrim_take_their_own_order():
    target = TinyTarget(97)
    bundle = tiny_bundle(target)
    for policy, order in (("fr-spec", bundle.frequency), ("vocabtrim", bundle.generated)):
        shortlist = registry.create(ShortlistConfig(policy, 10), target, bundle)
        state = shortlist.begin(torch.tensor([0]), target.output(torch.zeros(1, 8)))
        query = ShortlistQuery(1, torch.zeros(1, 8), torch.tensor([0]))
        inside = shortlist.contains(state, shortlist.select(state, query), torch.arange(97))
        assert set(inside.nonzero().squeeze(1).tolist()) == set(order[:10].tolist())


STEPS = {"bfloat16": 2**-8, "float16": 2**-11, "int8": 1 / 254, "q8_0": 1 / 254, "q5_1": 1 / 31}
STEPS |= {"q5_0": 1 / 16, "q4_1": 1 / 15, "q4_0": 1 / 8, "float32": 0.0}
"""Largest rounding of a value, of the largest of its row; scales of blocks are rounded to float16
beside."""


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("form", sorted(WEIGHT_FORMATS))
def test_a_head_in_another_format_scores_what_its_rows_say(policy, form):
    if form.startswith("q") and ops.backend() == "torch":
        pytest.skip("only the compiled extension packs blocks")
    target = TinyTarget(97, hidden_size=32)
    rows = WEIGHT_FORMATS.load(form).store(target.head).float()
    if form in STEPS:
        error = (rows - target.head).abs().amax(1) / target.head.abs().amax(1)
        assert error.max() <= STEPS[form] + (2**-10 if form.startswith("q") else 1e-6)
    shortlist = tiny_shortlist(policy, target, draft_head=form)

    def visit(state, selection, hidden, output):
        ids = shortlist.contains(state, selection, torch.arange(97)).nonzero().squeeze(1)
        log_q = torch.full((hidden.shape[0], 97), -torch.inf)
        log_q[:, ids] = torch.log_softmax(hidden @ rows[ids].t(), -1)
        found = output.log_q - shortlist.log_mass
        # Activations are rounded too, to 8 bits.
        torch.testing.assert_close(found, log_q.gather(1, output.ids), atol=0.15, rtol=0)

    drive(shortlist, target, 9, visit=visit)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_head_in_float32_is_the_head(policy):
    target = TinyTarget(97)
    ours = drive(tiny_shortlist(policy, target, draft_head="float32"), target, 9)
    theirs = drive(tiny_shortlist(policy, target), target, 9)
    for (ids, log_q, size), (a, b, c) in zip(ours, theirs, strict=True):
        assert torch.equal(ids, a)
        torch.testing.assert_close(log_q, b)
        assert size == c


@pytest.mark.parametrize("size", [98, 10**9])
@pytest.mark.parametrize("policy", ["nanospec", "fr-spec", "pa-fr", "vocabtrim", "dynaspec"])
def test_a_size_above_the_vocabulary_is_refused(policy, size):
    with pytest.raises(UsageError, match=r"--shortlist-size.*97"):
        tiny_shortlist(policy, TinyTarget(97), size)


def test_unknown_names_and_missing_bundles_are_refused():
    target = TinyTarget(97)
    with pytest.raises(UsageError, match="--shortlist: expected full"):
        registry.create(ShortlistConfig("fr_spec"), target)
    with pytest.raises(DynaSpecError, match="build-clusters"):
        registry.create(ShortlistConfig("dynaspec"), target)
    with pytest.raises(UsageError, match="full has no size"):
        registry.create(ShortlistConfig("full", 5), target)


def test_schedule_keeps_the_mean_and_refuses_nonsense():
    for decay in (1.0, 0.9, 0.5):
        budgets = BudgetSchedule(1000, 50000, decay, 6).budgets()
        assert 6000 - 6 < sum(budgets) <= 6000
        assert budgets == sorted(budgets, reverse=True)
    for bad in (
        (0, 10, 1.0, 6),
        (11, 10, 1.0, 6),
        (5, 10, 0.0, 6),
        (5, 10, 1.5, 6),
        (5, 10, 1.0, 0),
    ):
        with pytest.raises(UsageError):
            BudgetSchedule(*bad)


def test_without_the_router_the_frequent_tokens_take_its_share():
    target = TinyTarget(97)
    shortlist = tiny_shortlist("dynaspec", target, 40, router="none")
    assert shortlist.router is None
    assert shortlist.core == 30
    assert set(shortlist.budgets) == {40}

    def visit(state, selection, hidden, output):
        assert 30 <= output.size <= 40

    drive(shortlist, target, seed=11, visit=visit)


@pytest.mark.parametrize("depth", [6, 12, 16])
def test_deep_trees_keep_core_and_context(depth):
    target = TinyTarget(97)
    shortlist = registry.create(
        ShortlistConfig("dynaspec", 20), target, tiny_bundle(target), depth=depth
    )
    assert (shortlist.core, shortlist.context_cap) == (5, 5)
    assert min(shortlist.budgets) >= 10
