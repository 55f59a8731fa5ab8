"""Draws of the seeded source: their laws, their edges, their reproducibility."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.draw import draw_rows
from dynaspec_cli.sampling.source import (
    DRAFT_STREAM,
    VERIFY_STREAM,
    GeneratorSource,
    stream_seed,
)


def draws(
    source: GeneratorSource, weights: torch.Tensor, k: int, replacement: bool
) -> list[list[int]]:
    counts = [k] * len(weights)
    drawn = draw_rows(weights, source.uniforms(None, counts), counts, None, replacement)
    return [[column for column in row if column >= 0] for row in drawn.tolist()]


def chi_square_p(counts: list[int], probabilities: list[float]) -> float:
    """Upper tail probability of Pearson's statistic."""
    total = sum(counts)
    statistic = sum(
        (n - total * p) ** 2 / (total * p) for n, p in zip(counts, probabilities, strict=True)
    )
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def test_same_seed_same_decisions() -> None:
    def decisions(seed: int) -> list:
        source = GeneratorSource(seed)
        weights = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))
        return [
            source.uniform(),
            source.accept(0.5),
            source.categorical(weights[0]),
            draws(source, weights, 3, False),
            draws(source, weights, 3, True),
        ]

    assert decisions(7) == decisions(7)
    assert decisions(7) != decisions(8)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64, 10**30])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert 0 <= GeneratorSource(seed).uniform() < 1


def test_streams_are_outputs_of_splitmix64() -> None:
    """Stream i of a seed is its (i + 1)-th output; the first of 0 and of 1234567 are published."""
    assert stream_seed(0, VERIFY_STREAM) == 0xE220A8397B1DCDAF
    assert stream_seed(0, DRAFT_STREAM) == 0x6E789E6AA1B965F4
    assert stream_seed(1234567, VERIFY_STREAM) == 6457827717110365317
    assert stream_seed(1234567, DRAFT_STREAM) == 3203168211198807973


def test_a_uniform_that_equals_the_probability_rejects() -> None:
    """u lies in [0, 1): u < p has probability p, and u <= 0 would accept what must not be."""
    source = GeneratorSource(0)
    source._ready = [0.0, 0.5, 0.5]
    assert source.accept(0.5000001)
    assert not source.accept(0.5)
    assert not source.accept(0.0)


def test_uniforms_have_room_for_the_most_draws() -> None:
    source = GeneratorSource(0)
    assert source.uniforms(None, [2, 5, 1]).shape == (3, 5)
    assert source.uniforms(None, []).shape == (0, 0)


def test_streams_of_a_seed_differ() -> None:
    seeds = {
        stream_seed(s, stream) for s in range(1000) for stream in (VERIFY_STREAM, DRAFT_STREAM)
    }
    assert len(seeds) == 2000
    assert GeneratorSource(0).uniform() != GeneratorSource(0, DRAFT_STREAM).uniform()


def test_the_global_generator_is_untouched() -> None:
    before = torch.random.get_rng_state()
    source = GeneratorSource(1)
    source.accept(0.5)
    source.categorical(torch.ones(5))
    draws(source, torch.ones(2, 5), 2, False)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_accept_at_the_ends() -> None:
    source = GeneratorSource(0)
    assert not any(source.accept(0.0) for _ in range(100))
    assert all(source.accept(1.0) for _ in range(100))


class Fixed(GeneratorSource):
    """Returns the given number as every uniform draw."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def uniform(self) -> float:
        return self.value


@pytest.mark.parametrize(
    ("u", "index"), [(0.0, 1), (0.24999, 1), (0.25, 3), (0.74999, 3), (0.75, 4), (1 - 2**-53, 4)]
)
def test_categorical_inverts_the_cumulative_sum(u: float, index: int) -> None:
    """Tokens without mass are never drawn, at the borders neither."""
    weights = torch.tensor([0.0, 0.5, 0.0, 1.0, 0.5, 0.0])
    assert Fixed(u).categorical(weights) == index


def test_categorical_when_rounding_reaches_the_total() -> None:
    assert Fixed(1.0).categorical(torch.tensor([0.3, 0.3, 0.4, 0.0])) == 2


@pytest.mark.parametrize("weights", [[0.0, 0.0], [float("nan"), 1.0]])
def test_categorical_without_mass(weights: list[float]) -> None:
    with pytest.raises(DynaSpecError, match="without any mass"):
        GeneratorSource(0).categorical(torch.tensor(weights))


def test_categorical_law() -> None:
    weights = [0.05, 0.0, 0.3, 0.15, 0.5]
    source, counts = GeneratorSource(11), [0] * 5
    for _ in range(20_000):
        counts[source.categorical(torch.tensor(weights))] += 1
    assert counts[1] == 0
    kept = [i for i in range(5) if i != 1]
    assert chi_square_p([counts[i] for i in kept], [weights[i] for i in kept]) > 1e-4


@pytest.mark.parametrize("replacement", [False, True])
def test_law_of_ordered_draws(replacement: bool) -> None:
    """All ordered pairs from a distribution with an impossible token in its middle."""
    q = [0.1, 0.0, 0.6, 0.3]
    support = [0, 2, 3]
    rows = 40_000
    source = GeneratorSource(12)
    drawn = draws(source, torch.tensor([q], dtype=torch.float64).repeat(rows, 1), 2, replacement)
    law = {
        (a, b): q[a] * (q[b] if replacement else q[b] / (1 - q[a]))
        for a, b in itertools.product(support, repeat=2)
        if replacement or a != b
    }
    assert math.isclose(sum(law.values()), 1)
    counts = dict.fromkeys(law, 0)
    for pair in drawn:
        counts[tuple(pair)] += 1
    assert chi_square_p(list(counts.values()), list(law.values())) > 1e-4


def test_draws_without_replacement_end_with_the_support() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 1e-6], [0.0, 0.0, 5.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    drawn = draws(GeneratorSource(0), weights, 3, False)
    assert sorted(drawn[0]) == [1, 3]
    assert drawn[1] == [2]
    assert len(set(drawn[2])) == 3
    assert [len(row) for row in draws(GeneratorSource(0), weights, 9, False)] == [2, 1, 4]


def test_draws_with_replacement_stay_in_the_support() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]).repeat(500, 1)
    drawn = draws(GeneratorSource(0), weights, 8, True)
    assert {column for row in drawn for column in row} == {1, 3}
    assert all(len(row) == 8 for row in drawn)


def test_draws_from_a_large_flat_tail() -> None:
    """A float32 grid must not favour the tail: 2^18 tokens share a mass of 0.1."""
    tail = 1 << 18
    weights = torch.full((1, tail + 1), 0.1 / tail)
    weights[0, 0] = 0.9
    source, hits, rounds = GeneratorSource(13), 0, 400
    for _ in range(rounds):
        first, second = draws(source, weights, 2, False)[0]
        hits += first != 0
        assert first != second
    assert chi_square_p([hits, rounds - hits], [0.1, 0.9]) > 1e-4
