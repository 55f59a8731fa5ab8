"""Lookup drafts leave the target's law alone: the engine's loop, every random outcome."""

from __future__ import annotations

from typing import Any

import pytest
from exact_toys import ToyModel, distance, target_law
from test_law import EXACT, SAMPLERS
from toy_target import ToyDrafter, ToyTarget, decoded_law

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.protocols import TreePolicy
from dynaspec_cli.tree.registry import TREES as ALL_TREES
from dynaspec_cli.tree.registry import create_tree
from dynaspec_cli.tuning.costs import CostTable

PROMPT = (0, 1, 0, 2, 0, 1, 1, 0)
TREES = [name for name in ALL_TREES if name != "auto"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tree", TREES)
def test_joint_law_of_lookup_drafts(tree: str, sampler: str) -> None:
    sampling = SAMPLERS[sampler]
    model = ToyModel(vocab=3, shortlist_size=2, seed=11)

    def make(target: ToyTarget, script: object) -> Speculation:
        config = TreeConfig(tree, size=4, depth=3, width=2, threshold=0.05)
        return Speculation(LookupDrafter(), None, create_tree(config, sampling, draws=False))

    law, drafts = decoded_law(model, PROMPT, make, sampling, 4)
    assert distance(law, target_law(model, PROMPT, sampling, 4)) < EXACT
    assert drafts > 0.2


@pytest.mark.parametrize("tree", [*TREES, "auto"])
def test_greedy_text_of_lookup_drafts(tree: str) -> None:
    greedy = SamplingConfig(0.0)
    for seed in range(5):
        model = ToyModel(vocab=4, shortlist_size=2, seed=seed)

        def make(target: ToyTarget, script: object) -> Speculation:
            config = TreeConfig(tree, size=6, depth=4, width=3)
            return Speculation(LookupDrafter(), None, create_tree(config, greedy, draws=False))

        law, _ = decoded_law(model, PROMPT, make, greedy, 30)
        context = PROMPT
        for _ in range(30):
            context = (*context, int(model.target_logits(context).argmax()))
        assert law == {context[len(PROMPT) :]: 1.0}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tree", TREES)
def test_joint_law_of_a_drafter_with_lookup_beside(tree: str, sampler: str) -> None:
    """Points before draws in one tree, and rounds of lookup alone."""
    sampling = SAMPLERS[sampler]
    model = ToyModel(vocab=3, shortlist_size=2, seed=7)

    def make(target: ToyTarget, script: Any) -> Speculation:
        size = 4 if tree == "specinfer" else 3  # what its expansion holds
        config = TreeConfig(
            tree, size=size, depth=2, width=2, threshold=0.05,
            expansion=(2, 1) if tree == "specinfer" else None,
        )  # fmt: skip
        policy = create_tree(config, sampling, source=script)
        return Speculation(ToyDrafter(model, 2), None, policy, 1.0, LookupDrafter(), 3)

    law, drafts = decoded_law(model, PROMPT, make, sampling, 3)
    assert distance(law, target_law(model, PROMPT, sampling, 3)) < EXACT
    assert drafts > 0.1


def test_greedy_text_of_a_drafter_with_lookup_beside() -> None:
    greedy = SamplingConfig(0.0)
    for seed in range(8):
        model = ToyModel(vocab=4, shortlist_size=2, seed=seed)

        def make(target: ToyTarget, script: object, model: ToyModel = model) -> Speculation:
            policy = create_tree(TreeConfig("dyspec", size=6, depth=4, width=3), greedy)
            return Speculation(ToyDrafter(model, 3), None, policy, 1.0, LookupDrafter(), 6)

        law, _ = decoded_law(model, PROMPT, make, greedy, 30)
        context = PROMPT
        for _ in range(30):
            context = (*context, int(model.target_logits(context).argmax()))
        assert law == {context[len(PROMPT) :]: 1.0}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("tree", ["chain", "eagle2", "dyspec", "sequoia"])
def test_joint_law_of_trees_whose_size_adapts(tree: str, beside: bool) -> None:
    """Rounds of many sizes, none among them, in one text."""
    sampling = SAMPLERS["plain"]
    model = ToyModel(vocab=3, shortlist_size=2, seed=3)
    costs = CostTable((1, 2, 3, 5), (1.0, 1.25, 1.4, 2.2), 0.02)
    drafted: set[int] = set()

    def make(target: ToyTarget, script: Any) -> Speculation:
        def resized(size: int) -> TreePolicy:
            drafted.add(size)
            config = TreeConfig(tree, size=size, depth=2, width=2, threshold=0.05)
            return create_tree(config, sampling, source=script)

        lookup = LookupDrafter() if beside else None
        return Speculation(
            ToyDrafter(model, 2), None, resized(3), 1.0, lookup, 3, costs, resized, (0.6, 0.3, 0.2)
        )

    law, drafts = decoded_law(model, PROMPT, make, sampling, 4)
    assert distance(law, target_law(model, PROMPT, sampling, 4)) < EXACT
    assert drafts > 0.1
    assert len(drafted) > 1
