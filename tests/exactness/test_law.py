"""The law of emitted tokens is the target's, shown by enumerating every random outcome."""

from __future__ import annotations

import pytest
import torch
from exact_toys import (
    Script,
    ToyModel,
    distance,
    draft,
    emitted_law,
    node_contexts,
    outcomes,
    run_step,
    step_law,
    target_law,
)

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.protocols import TreePolicy
from dynaspec_cli.tree.registry import TREES, create_tree

EXACT = 1e-12

DRAWN_TREES = [name for name in TREES.names() if name != "auto"]
"""Trees for temperatures above 0 (the registry refuses the other)."""

SAMPLING_TREES = [f"{name}{form}" for form in ("", " best", " traversal") for name in DRAWN_TREES]
"""Their children drawn, or the drafter's best tokens, or drawn and verified from the leaves up."""

SAMPLERS = {
    "plain": SamplingConfig(temperature=1.0),
    "cool": SamplingConfig(temperature=0.6),
    "top-k": SamplingConfig(temperature=1.0, top_k=2),
    "top-p": SamplingConfig(temperature=1.2, top_p=0.8),
    "min-p": SamplingConfig(temperature=1.0, min_p=0.3),
    "all": SamplingConfig(temperature=1.5, top_k=3, top_p=0.95, min_p=0.05),
}


def policy_maker(name: str, sampling: SamplingConfig, size: int, depth: int, width: int):
    """``name``: a policy; "policy best": its children are not drawn; "policy traversal": verified
    from the leaves up."""
    policy, _, form = name.partition(" ")
    expansion = (width,) + (1,) * (depth - 1)
    if policy == "specinfer":
        size = 1024
    config = TreeConfig(
        policy,
        size,
        depth,
        width,
        threshold=0.05,
        draw="best" if form == "best" else "auto",
        expansion=expansion,
        verification="traversal" if form == "traversal" else "siblings",
    )

    def make(script: Script) -> TreePolicy:
        return create_tree(config, sampling, script)

    return make


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_joint_law_of_three_tokens(tree: str, sampler: str) -> None:
    """Three tokens over several steps, a shortlist of two of three tokens, two levels."""
    model, sampling = ToyModel(vocab=3, shortlist_size=2, seed=5), SAMPLERS[sampler]
    law = emitted_law(model, policy_maker(tree, sampling, 3, 2, 2), (0,), sampling, 3)
    assert distance(law, target_law(model, (0,), sampling, 3)) < EXACT


@pytest.mark.parametrize("shortlist_size", [1, 2, 4])
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_law_of_a_step_by_shortlist_size(tree: str, shortlist_size: int) -> None:
    """Four tokens; shortlists of one token, of half and of all of the vocabulary; the support of q
    runs out."""
    sampling = SamplingConfig(temperature=1.0)
    model = ToyModel(vocab=4, shortlist_size=shortlist_size, seed=11)
    depth = 2 if shortlist_size < 4 or tree.endswith("best") or tree == "chain" else 1
    width = min(3, max(2, shortlist_size))
    law = emitted_law(model, policy_maker(tree, sampling, 4, depth, width), (1,), sampling, 2)
    assert distance(law, target_law(model, (1,), sampling, 2)) < EXACT


@pytest.mark.parametrize("sampler", ["plain", "all"])
def test_specinfer_with_two_draws_on_both_levels(sampler: str) -> None:
    model, sampling = ToyModel(vocab=3, shortlist_size=2, seed=5), SAMPLERS[sampler]
    config = TreeConfig("specinfer", size=6, depth=2, width=2, expansion=(2, 2))

    def make(script: Script) -> TreePolicy:
        return create_tree(config, sampling, script)

    law = emitted_law(model, make, (0,), sampling, 2)
    assert distance(law, target_law(model, (0,), sampling, 2)) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("shortlist_size", [2, 3])
@pytest.mark.parametrize("sampler", ["plain", "all"])
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_joint_law_on_larger_toys(tree: str, sampler: str, shortlist_size: int) -> None:
    """Four tokens; three levels for a shortlist of two, two for one of three."""
    sampling = SAMPLERS[sampler]
    model = ToyModel(vocab=4, shortlist_size=shortlist_size, seed=100)
    make = policy_maker(tree, sampling, 4, 3 if shortlist_size == 2 else 2, 2)
    law = emitted_law(model, make, (2,), sampling, 2)
    assert distance(law, target_law(model, (2,), sampling, 2)) < EXACT


@pytest.mark.parametrize("tree", [*DRAWN_TREES, "chain best", "eagle2 best", "dyspec best"])
def test_drafts_may_depend_on_rejected_drafts(tree: str) -> None:
    """The shortlist of the second step is a function of the whole tree of the first, rejected nodes
    too (as with context shortlists): both steps are enumerated together."""
    sampling = SamplingConfig(temperature=1.0)
    model = ToyModel(vocab=3, shortlist_size=2, seed=21)
    make_first = policy_maker(tree, sampling, 2, 1, 2)
    make_second = policy_maker(tree, sampling, 2, 1, 1 if tree == "specinfer" else 2)

    def two_steps(script: Script) -> tuple[int, ...]:
        drafted: list[int] = []

        class Watched(ToyModel):
            def shortlist(self, contexts):
                if not drafted:
                    return super().shortlist(contexts)
                return torch.tensor(sorted({sum(drafted) % 3, (drafted[-1] + 1) % 3}))

        watched = Watched(vocab=3, shortlist_size=2, seed=21)
        watched.memo = model.memo
        policy = make_first(script)
        original_finish = policy.finish

        def finish(state):
            result = original_finish(state)
            watched.tree = result
            return result

        policy.finish = finish
        first = run_step(watched, policy, (0,), sampling, script)
        drafted.extend(watched.tree.tokens.tolist())
        second = run_step(watched, make_second(script), (0, *first), sampling, script)
        return (*first, *second)[:2]

    law: dict[tuple[int, ...], float] = {}
    for tokens, probability in outcomes(two_steps):
        law[tokens] = law.get(tokens, 0.0) + probability
    assert distance(law, target_law(model, (0,), sampling, 2)) < EXACT


@pytest.mark.parametrize("verification", ["siblings", "traversal"])
@pytest.mark.parametrize("policy", ["dyspec", "eagle2", "ddd"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_tree_that_is_full(seed: int, shared: bool, policy: str, verification: str) -> None:
    """More slots than places. A token drawn at the root is in the frontier, so a shortlist that
    asks the frontier shows it to the other branches, and with it what their slots are worth."""
    model = ToyModel(vocab=4, shortlist_size=3, seed=seed, shared=shared)
    config = TreeConfig(policy, size=3, depth=2, width=2, threshold=0.05, verification=verification)

    def make(script: Script) -> TreePolicy:
        return create_tree(config, SamplingConfig(temperature=1.0), script)

    sampling = SamplingConfig(temperature=1.0)
    law = emitted_law(model, make, (0,), sampling, 2)
    assert distance(law, target_law(model, (0,), sampling, 2)) < 1e-12


@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_toys_exercise_acceptance_rejection_and_misses(tree: str) -> None:
    """The enumeration would prove nothing if drafts were always or never accepted."""
    sampling = SamplingConfig(temperature=1.0)
    model = ToyModel(vocab=3, shortlist_size=2, seed=5)
    law = step_law(model, policy_maker(tree, sampling, 3, 2, 2), (0,), sampling)
    lengths = {len(tokens) for tokens in law}
    assert lengths == {1, 2, 3}
    drafted_first = set(model.shortlist([(0,)]).tolist())
    missed = sum(pr for tokens, pr in law.items() if tokens[0] not in drafted_first)
    assert 0.01 < missed < 0.99


@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_greedy_target_in_sampled_verification(tree: str) -> None:
    """With temperature 0 the law is one sequence: the target's argmax tokens."""
    sampling = SamplingConfig(temperature=0.0)
    model = ToyModel(vocab=5, shortlist_size=3, seed=31)
    policy = create_tree(TreeConfig(tree.split()[0], size=6, depth=3, width=3), sampling)
    tree_drafted = draft(model, policy, (0,))
    contexts = node_contexts(tree_drafted, (0,))
    law = emitted_law(model, policy_maker(tree, sampling, 6, 3, 3), (0,), sampling, 4)
    expected, context = [], (0,)
    for _ in range(4):
        expected.append(int(model.target_logits(context).argmax()))
        context = (*context, expected[-1])
    assert law == {tuple(expected): 1.0}
    assert len(contexts) == tree_drafted.num_nodes + 1
