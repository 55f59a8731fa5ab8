"""Greedy decoding emits the target's own argmax sequence, whatever the tree and the shortlist."""

from __future__ import annotations

import pytest
import torch
from exact_toys import Context, ToyModel, draft, node_contexts
from torch import Tensor

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.sampling.verify import verify
from dynaspec_cli.tree.registry import TREES, create_tree

GREEDY = SamplingConfig(temperature=0.0)


class ArgmaxOutput:
    """A target's output that can only say its argmax."""

    features = torch.zeros(0)
    cheap_rows: int | None = None
    rows_ranked: Tensor | None = None

    def __init__(self, choices: Tensor) -> None:
        self.choices = choices

    def argmax(self, rows: Tensor | None = None) -> Tensor:
        return self.choices if rows is None else self.choices[rows]

    def logits_at(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        raise AssertionError("greedy verification needs no logits")

    def logits(self, rows: Tensor | None = None) -> Tensor:
        raise AssertionError("greedy verification needs no logits")

    def leaders(self, k: int, rows: Tensor | None = None) -> Tensor:
        raise AssertionError("greedy verification needs no leaders")


@pytest.mark.parametrize("shortlist_size", [1, 5, 20])
@pytest.mark.parametrize("tree", TREES)
def test_the_sequence_is_the_targets(tree: str, shortlist_size: int) -> None:
    accepted = steps = 0
    for seed in range(4):
        model = ToyModel(vocab=20, shortlist_size=shortlist_size, seed=seed, spread=2.0)
        policy = create_tree(TreeConfig(tree, size=10, depth=4, width=3), GREEDY)
        context: Context = (0,)
        while len(context) <= 24:
            drafted = draft(model, policy, context)
            assert drafted.q is None
            contexts = node_contexts(drafted, context)
            choices = torch.stack([model.target_logits(c).argmax() for c in contexts])
            verdict = verify(drafted, ArgmaxOutput(choices), GREEDY, GeneratorSource(0))
            accepted += verdict.path.numel() - 1
            steps += 1
            context = (*contexts[int(verdict.path[-1])], verdict.bonus)
        plain: Context = (0,)
        while len(plain) < len(context):
            plain = (*plain, int(model.target_logits(plain).argmax()))
        assert context == plain
    if shortlist_size > 1:
        assert accepted > 0
    assert accepted < 4 * steps  # and not everything is accepted
