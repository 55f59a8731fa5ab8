"""Probabilities against transformers' logits processors, ties included, and the errors of bad
logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.sampling.processors import probabilities

CONFIGS = [
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.6),
    SamplingConfig(temperature=1.7),
    SamplingConfig(temperature=1.0, top_k=1),
    SamplingConfig(temperature=0.8, top_k=5),
    SamplingConfig(temperature=0.8, top_k=10_000),
    SamplingConfig(temperature=1.0, top_p=0.1),
    SamplingConfig(temperature=1.0, top_p=0.9),
    SamplingConfig(temperature=2.0, top_p=0.999),
    SamplingConfig(temperature=1.0, min_p=0.02),
    SamplingConfig(temperature=0.7, min_p=1.0),
    SamplingConfig(temperature=0.9, top_k=40, top_p=0.8),
    SamplingConfig(temperature=1.3, top_k=40, min_p=0.1),
    SamplingConfig(temperature=1.3, top_p=0.95, min_p=0.05),
    SamplingConfig(temperature=1.1, top_k=25, top_p=0.9, min_p=0.03),
]


def by_transformers(logits: Tensor, config: SamplingConfig) -> Tensor:
    """softmax of the processors that transformers' ``generate`` would chain, in its order."""
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    chain = LogitsProcessorList()
    if config.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chain.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        chain.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        chain.append(MinPLogitsWarper(config.min_p))
    return torch.softmax(chain(None, logits), -1)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_as_transformers(config: SamplingConfig, spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = spread * torch.randn(17, 997, generator=generator, dtype=torch.float64)
    p, expected = probabilities(logits, config), by_transformers(logits, config)
    assert torch.equal(p > 0, expected > 0)
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_as_transformers_with_ties(config: SamplingConfig) -> None:
    """Logits on a coarse grid: every border falls among ties. Which of tied tokens top-p keeps is
    left to an unstable sort there (here: the higher ids), so the kept probabilities are compared
    as sorted values, and every kept token's with its own where both keep it."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randint(-4, 5, (40, 61), generator=generator).double() / 2
    p, expected = probabilities(logits, config), by_transformers(logits, config)
    torch.testing.assert_close(p.sort(1).values, expected.sort(1).values, rtol=1e-12, atol=0)
    both = (p > 0) & (expected > 0)
    torch.testing.assert_close(p[both], expected[both], rtol=1e-12, atol=0)
    for row in range(40):
        for value in logits[row].unique():
            tied = p[row][logits[row] == value] > 0
            assert torch.equal(tied, tied.sort().values)  # the higher ids
    if not config.top_p < 1.0:
        assert torch.equal(p > 0, expected > 0)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_as_transformers_in_float32_on_a_large_vocabulary(config: SamplingConfig) -> None:
    """A float32 cumulative sum over the vocabulary rounds, so the border of top-p may move by a few
    tokens."""
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2, 262_144, generator=generator)
    p, expected = probabilities(logits, config), by_transformers(logits, config)
    assert p.dtype == torch.float32
    assert float((p - expected).abs().sum(1).max()) < 1e-4
    torch.testing.assert_close(p.sum(1), torch.ones(2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.75, 0.999999])
def test_top_p_on_a_flat_distribution(top_p: float) -> None:
    """All tied, nothing stands out: the highest ids stay, as an ascending stable sort leaves
    them."""
    p = probabilities(torch.zeros(1, 1000, dtype=torch.float64), SamplingConfig(1.0, top_p=top_p))
    kept = p[0].nonzero().squeeze(1).tolist()
    assert kept == list(range(1000 - len(kept), 1000))
    assert abs(len(kept) - 1000 * top_p) <= 1


def test_top_k_keeps_ties_with_the_kth() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0, 1.0]])
    p = probabilities(logits, SamplingConfig(1.0, top_k=2))
    assert (p[0] > 0).tolist() == [True, True, True, False, True]


def test_greedy_is_one_hot_at_the_lowest_tied_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, -1.0, 5.0], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(probabilities(logits, SamplingConfig(0.0, top_k=3, top_p=0.5)), expected)


def test_a_row_does_not_depend_on_other_rows() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(6))
    for config in CONFIGS:
        together = probabilities(logits, config)
        for row in range(5):
            alone = probabilities(logits[row : row + 1], config)[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-6, atol=0)


def test_input_is_left_alone() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(7))
    copy = logits.clone()
    for config in [SamplingConfig(0.0), *CONFIGS]:
        probabilities(logits, config)
    assert torch.equal(logits, copy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("config", [SamplingConfig(0.0), *CONFIGS[:5]], ids=str)
def test_bad_logits_are_refused(bad: float, config: SamplingConfig) -> None:
    logits = torch.zeros(3, 10)
    logits[1, 7] = bad
    with pytest.raises(DynaSpecError, match="NaN or infinite") as caught:
        probabilities(logits, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("logits", [torch.zeros(4), torch.zeros(1, 4, dtype=torch.bfloat16)])
def test_wrong_shape_or_dtype(logits: Tensor) -> None:
    with pytest.raises(DynaSpecError, match=r"expected float32 \[n, V\], got"):
        probabilities(logits, SamplingConfig(1.0))


def test_empty_batch() -> None:
    assert probabilities(torch.zeros(0, 7), SamplingConfig(1.0, top_k=2)).shape == (0, 7)
