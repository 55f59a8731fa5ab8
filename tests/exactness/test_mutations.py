"""Plausible mistakes in verification or drafting must break the law; else the enumeration would
prove nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from exact_toys import Script, ToyModel, distance, emitted_law, target_law

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.ops.reference_grow import COUNT, COUNTERS
from dynaspec_cli.protocols import DraftTree, TreePolicy
from dynaspec_cli.sampling import verify as verification
from dynaspec_cli.sampling.verify import SampledDrafts
from dynaspec_cli.tree.registry import create_tree

SAMPLING = SamplingConfig(temperature=1.0)
VISIBLE = 1e-4


def law_error(tree: str, vocab: int = 3, size: int = 3, depth: int = 2, width: int = 2) -> float:
    """Distance between the emitted law of two tokens and the target's; the shortlist misses one."""
    model = ToyModel(vocab=vocab, shortlist_size=vocab - 1, seed=5)
    policy, _, best = tree.partition(" ")
    config = TreeConfig(
        policy, size, depth, width, 0.05, draw="best" if best else "auto", expansion=(2,)
    )

    def make(script: Script) -> TreePolicy:
        return create_tree(config, SAMPLING, script)

    law = emitted_law(model, make, (0,), SAMPLING, 2)
    return distance(law, target_law(model, (0,), SAMPLING, 2))


@pytest.mark.parametrize(
    "tree", ["eagle2 best", "eagle2", "ddd", "chain", "dyspec", "specinfer", "sequoia"]
)
def test_without_a_mutation_the_law_holds(tree: str) -> None:
    assert law_error(tree) < 1e-12


def change_finish(
    monkeypatch: pytest.MonkeyPatch, tree: str, change: Callable[[DraftTree], DraftTree]
) -> None:
    """Alter every tree that the policy hands to verification."""
    policy = type(create_tree(TreeConfig(tree), SAMPLING))
    original = policy.finish
    monkeypatch.setattr(policy, "finish", lambda self, state: change(original(self, state)))


def test_rejected_point_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bonus token of a rejected deterministic draft drawn from p, not from the residual."""
    original = verification.sibling_chances

    def wrong(p, *rest):
        return original(p, *rest)[0], p

    monkeypatch.setattr(verification, "sibling_chances", wrong)
    assert law_error("eagle2 best") > VISIBLE


def test_points_not_renormalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second child accepted with p(x), not p(x) / (1 - p(first))."""
    original = verification.sibling_chances

    def wrong(p, tokens, *rest):
        return p[list(tokens)], original(p, tokens, *rest)[1]

    monkeypatch.setattr(verification, "sibling_chances", wrong)
    assert law_error("eagle2 best") > VISIBLE


def test_points_accepted_with_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """A top-k pick treated as if it had been sampled (min(1, p/q)), the mistake asked about
    most."""
    original = verification.sibling_chances

    def wrong(p, tokens, *rest):
        return (p[list(tokens)] / 0.5).clamp(max=1), original(p, tokens, *rest)[1]

    monkeypatch.setattr(verification, "sibling_chances", wrong)
    assert law_error("eagle2 best") > VISIBLE


@pytest.mark.parametrize("tree", ["dyspec", "sequoia"])
def test_draws_without_replacement_verified_as_independent(
    tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(drafted: DraftTree) -> DraftTree:
        return dataclasses.replace(drafted, q=SampledDrafts(drafted.q.nodes, replacement=True))

    change_finish(monkeypatch, tree, change)
    assert law_error(tree) > VISIBLE


@pytest.mark.parametrize("tree", ["dyspec", "specinfer", "sequoia"])
def test_sampled_children_verified_as_points(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact but for one thing: a point mass must not depend on the random numbers of the draft. It
    does not matter to the law (the draft is then a mixture of point masses), so this one is *not* a
    mistake."""
    change_finish(monkeypatch, tree, lambda drafted: dataclasses.replace(drafted, q=None))
    assert law_error(tree) < 1e-12


@pytest.mark.parametrize("tree", ["dyspec", "sequoia"])
def test_siblings_tried_in_another_order(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws without replacement verified in reverse: the last draw's law is not q."""

    def change(drafted: DraftTree) -> DraftTree:
        nodes = {
            row: dataclasses.replace(draft, draws=draft.draws[::-1])
            for row, draft in drafted.q.nodes.items()
        }
        return dataclasses.replace(drafted, q=SampledDrafts(nodes, drafted.q.replacement))

    change_finish(monkeypatch, tree, change)
    assert law_error(tree) > VISIBLE


@pytest.mark.parametrize("tree", ["dyspec", "specinfer", "sequoia"])
def test_another_q_than_the_one_drawn_from(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q with the shortlist's estimated mass left in for one token: not the distribution drawn
    from."""

    def change(drafted: DraftTree) -> DraftTree:
        nodes = {}
        for row, draft in drafted.q.nodes.items():
            q = draft.q.clone()
            q[0] *= 1.5
            nodes[row] = dataclasses.replace(draft, q=q)
        return dataclasses.replace(drafted, q=SampledDrafts(nodes, drafted.q.replacement))

    change_finish(monkeypatch, tree, change)
    assert law_error(tree) > VISIBLE


@pytest.mark.parametrize("tree", ["dyspec", "specinfer", "sequoia"])
def test_q_indexed_by_the_wrong_tokens(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The column -> token map of q rotated for the residual: an equal-width, permuted map."""
    original = verification.sibling_chances

    def wrong(p, tokens, columns, ids, *rest):
        moved = p.clone()
        moved[ids] = p[ids.roll(1)]
        return original(moved, tokens, columns, ids, *rest)

    monkeypatch.setattr(verification, "sibling_chances", wrong)
    assert law_error(tree) > VISIBLE


def test_sampled_tree_pruned_by_token_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """DySpec's cap applied to the values of drawn *tokens* instead of slots: improbable draws
    vanish, and what is verified was not drawn from q."""
    from dynaspec_cli.tree.dyspec import DySpecDrawn

    original = DySpecDrawn.finish

    def finish(self, state):
        count = int(state.nodes[COUNTERS, COUNT])
        values, priorities = state.values[0].tolist(), state.values[1]
        by_token = sorted(range(1, count), key=lambda node: (-values[node], node))
        priorities[:count] = -torch.inf
        priorities[by_token[: self.size]] = 1.0
        return original(self, state)

    monkeypatch.setattr(DySpecDrawn, "finish", finish)
    assert law_error("dyspec", vocab=4, size=2, depth=1, width=3) > VISIBLE


def test_acceptance_test_sharing_the_drafts_randomness() -> None:
    """One uniform number both draws the token and tests it: why drafting and verification have
    separate streams. Enumerated by splitting [0, 1) at the points where a decision changes."""
    p, q = (0.5, 0.5), (0.8, 0.2)
    emitted = [0.0, 0.0]
    steps = 10_000
    for i in range(steps):
        u = (i + 0.5) / steps
        token = 0 if u < q[0] else 1
        kept = token if u < p[token] / q[token] else 1
        emitted[kept] += 1 / steps
    assert abs(emitted[0] - p[0]) > 0.1


def test_slots_displaced_by_what_a_shared_shortlist_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of all levels compete for the places, though the frontier's tokens chose the shortlist:
    a drawn token can raise a slot of another branch above its own."""
    assert law_error("dyspec", vocab=4) < 1e-12
    original = ToyModel.candidates

    def wrong(self, contexts, width):
        return dataclasses.replace(original(self, contexts, width), shared=False)

    monkeypatch.setattr(ToyModel, "candidates", wrong)
    assert law_error("dyspec", vocab=4) > VISIBLE
