"""Lookup drafts leave the target's law alone: the engine's loop, every random outcome."""

from __future__ import annotations

import pytest
from exact_toys import ToyModel, distance, target_law
from test_law import EXACT, SAMPLERS
from toy_target import ToyTarget, decoded_law

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.tree.registry import create_tree, tree_names

PROMPT = (0, 1, 0, 2, 0, 1, 1, 0)
TREES = [name for name in tree_names() if name != "auto"]


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
