"""Goodness of fit of seeded runs: what enumeration leaves out, i.e. the generator's draws, float32,
larger vocabularies.

A family of tests shares one error probability (``FAMILY``): each cell is tested at FAMILY / (number
of tests of the family). Seeds are fixed, so a test that passes once passes always.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from exact_toys import Context, ToyModel, run_step, target_law

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.protocols import DraftHeadOutput
from dynaspec_cli.sampling import verify as verification
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.tree.registry import TREES, create_tree

FAMILY = 1e-3

SAMPLING_TREES = [name for name in TREES.names() if name != "auto"]
"""Trees for temperatures above 0 (the registry refuses the other)."""

SAMPLERS = [
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.7, top_k=4),
    SamplingConfig(temperature=1.3, top_p=0.85),
    SamplingConfig(temperature=1.0, min_p=0.1),
]


class Float32Model(ToyModel):
    """The toy with what a model really gives: float32."""

    def target_logits(self, context: Context) -> torch.Tensor:
        return super().target_logits(context).float()

    def candidates(self, contexts: list[Context], width: int) -> DraftHeadOutput:
        out = super().candidates(contexts, width)
        assert out.log_probs is not None
        return DraftHeadOutput(
            out.log_q.float(), out.ids, out.size, out.log_probs.float(), out.all_ids
        )


def emitted(
    model: ToyModel,
    tree: str,
    sampling: SamplingConfig,
    length: int,
    depth: int = 3,
    draw: str = "auto",
) -> Context:
    """The first tokens of a request with the seed of ``sampling``."""
    config = TreeConfig(tree, size=8, depth=depth, width=3, threshold=0.05, draw=draw)
    policy = create_tree(config, sampling)
    source = GeneratorSource(sampling.seed)
    tokens: Context = ()
    while len(tokens) < length:
        tokens += run_step(model, policy, (0, *tokens), sampling, source)
    return tokens[:length]


def p_value(counts: Counter[Context], law: dict[Context, float]) -> float:
    """Pearson's test; cells with less than 5 expected are pooled."""
    total = sum(counts.values())
    assert set(counts) <= set(law), "a sequence that the target cannot emit"
    cells = [(counts[key], total * p) for key, p in law.items() if total * p >= 5]
    rest = (total - sum(n for n, _ in cells), total - sum(e for _, e in cells))
    if rest[1] >= 5:
        cells.append(rest)
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2).double()))


def fit(model: ToyModel, tree: str, sampler: SamplingConfig, runs: int, length: int) -> float:
    law = target_law(model, (0,), sampler, length)
    counts: Counter[Context] = Counter()
    for seed in range(runs):
        sampling = SamplingConfig(
            sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p, seed
        )
        counts[emitted(model, tree, sampling, length)] += 1
    return p_value(counts, law)


@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_two_tokens(tree: str) -> None:
    model = Float32Model(vocab=5, shortlist_size=3, seed=41)
    assert fit(model, tree, SAMPLERS[0], runs=400, length=2) > FAMILY / len(SAMPLING_TREES)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", range(len(SAMPLERS)))
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_three_tokens(tree: str, sampler: int) -> None:
    model = Float32Model(vocab=6, shortlist_size=(3, 2, 6, 4)[sampler], seed=42)
    tests = len(SAMPLING_TREES) * len(SAMPLERS)
    assert fit(model, tree, SAMPLERS[sampler], runs=2500, length=3) > FAMILY / tests


@pytest.mark.slow
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_one_token_of_a_thousand(tree: str) -> None:
    model = Float32Model(vocab=1000, shortlist_size=60, seed=43, spread=2.5)
    assert fit(model, tree, SAMPLERS[0], runs=3000, length=1) > FAMILY / len(SAMPLING_TREES)


@pytest.mark.slow
def test_a_mistake_is_seen_at_this_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: the bonus token drawn from p after a rejection."""

    original = verification.sibling_chances

    def wrong(p, *rest):
        return original(p, *rest)[0], p

    monkeypatch.setattr(verification, "sibling_chances", wrong)
    model = Float32Model(vocab=6, shortlist_size=3, seed=42)
    assert fit(model, "eagle2", SAMPLERS[0], runs=2500, length=3) < 1e-9
