"""Every reported number on a trace small enough to be computed by hand."""

from __future__ import annotations

import json
import math

import pytest

from dynaspec_cli.engine import stats
from dynaspec_cli.engine.events import PHASES, Comparison, Divergence, GenerationResult, StepStats

# Five verifications of a tree with 3 levels (the last one with 2): accepted 2, 0, 3, 1, 0.
TRACE = (
    StepStats(6, 2, 3, (100, 200, 300), (True, True, False), {"verify": 0.010, "head": 0.002}),
    StepStats(6, 0, 3, (100, 100, 100), (False,), {"verify": 0.020, "head": 0.004}),
    StepStats(6, 3, 3, (100, 200, 300), (True, True, True), {"verify": 0.010}),
    StepStats(6, 1, 3, (100, 200, 300), (True, True), {"verify": 0.010, "tree": 0.005}),
    StepStats(2, 0, 2, (100, 100), (True,), {"verify": 0.010}),
)


def test_hand_made_trace() -> None:
    assert stats.num_accepted_draft_tokens(TRACE) == 6
    assert stats.num_draft_tokens(TRACE) == 26
    assert stats.mean_acceptance_length(TRACE) == pytest.approx(1 + 6 / 5)
    assert stats.draft_acceptance_rate(TRACE) == pytest.approx(6 / 26)
    # accepted >= 0, 1, 2, 3: 5, 3, 2, 1 steps
    assert stats.acceptance_by_position(TRACE) == pytest.approx((3 / 5, 2 / 3, 1 / 2))
    assert stats.unconditional_acceptance_by_position(TRACE) == pytest.approx((3 / 5, 2 / 5, 1 / 5))
    assert stats.mean_shortlist_size(TRACE) == pytest.approx(2300 / 14)
    assert stats.coverage(TRACE) == pytest.approx(8 / 10)
    assert stats.coverage_by_position(TRACE) == pytest.approx((4 / 5, 3 / 3, 1 / 2))
    ms = stats.phase_ms(TRACE)
    assert list(ms) == list(PHASES)
    assert ms["verify"] == pytest.approx(12.0)
    assert ms["head"] == pytest.approx(1.2)
    assert ms["tree"] == pytest.approx(1.0)
    assert ms["router"] == 0


def test_conditional_acceptance_determines_tau() -> None:
    alphas = stats.acceptance_by_position(TRACE)
    products = [math.prod(alphas[: i + 1]) for i in range(len(alphas))]
    assert 1 + sum(products) == pytest.approx(stats.mean_acceptance_length(TRACE))


def test_acceptance_by_position_ends_where_nothing_was_reached() -> None:
    assert stats.acceptance_by_position([StepStats(4, 0, 4)] * 3) == (0.0,)
    assert stats.acceptance_by_position([StepStats(4, 4, 4)] * 3) == (1.0,) * 4


def test_pooling_divides_sums() -> None:
    pooled = stats.mean_acceptance_length([*TRACE, StepStats(1, 1, 1)])
    assert pooled == pytest.approx(1 + 7 / 6)
    assert stats.recovery(TRACE, [StepStats(6, 2, 3)]) == pytest.approx((11 / 5) / 3)


def test_without_steps() -> None:
    assert stats.mean_acceptance_length(()) == 1.0
    assert stats.acceptance_by_position(()) == ()
    assert stats.mean_shortlist_size(()) is None
    assert stats.draft_acceptance_rate(()) is None
    assert stats.coverage(()) is None
    assert set(stats.phase_ms(()).values()) == {0.0}
    assert stats.tokens_per_second(0, 1.0) == 0.0
    assert stats.speedup(1.0, 0.0) is None


def test_first_difference_counts_unequal_length() -> None:
    assert stats.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert stats.first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert stats.first_difference([1, 2], [1, 2, 3]) == 2
    assert stats.first_difference([], [7]) == 0


def test_ties_are_bounded_by_dtype() -> None:
    assert stats.is_tie(0.2, "bfloat16")
    assert not stats.is_tie(0.2, "float32")
    assert not stats.is_tie(0.51, "bfloat16")


def summary(speculative: bool = True) -> GenerationResult:
    return stats.summarize(
        text="abc",
        token_ids=[5, 6, 7, 8],
        prompt_tokens=3,
        finish_reason="length",
        steps=TRACE,
        speculative=speculative,
        time_to_first_token_s=0.1,
        decode_s=1.5,
        load_s=2.0,
        settings={"model": "m"},
    )


def test_summary_and_its_json() -> None:
    result = summary()
    assert result.tokens_per_second == pytest.approx(2.0)  # the first token is no decode token
    data = json.loads(json.dumps(result.to_json()))
    assert data["schema"] == 1
    assert data["new_tokens"] == 4
    assert data["num_spec_steps"] == 5
    assert data["mean_acceptance_length"] == pytest.approx(2.2)
    assert data["token_ids"] == [5, 6, 7, 8]
    assert "steps" not in data
    assert "speedup" not in data
    ar = summary(speculative=False)
    assert (ar.num_spec_steps, ar.acceptance_by_position) == (0, ())


def test_json_of_a_comparison() -> None:
    from dataclasses import replace

    comparison = Comparison(0.8, False, Divergence(2, 7, 9, 0.01, True), summary(False))
    data = json.loads(json.dumps(replace(summary(), comparison=comparison).to_json()))
    assert data["speedup"] == 0.8
    assert data["identical"] is False
    assert data["first_divergence"] == {
        "position": 2, "token_id": 7, "ar_token_id": 9, "logit_gap": 0.01, "tie": True
    }  # fmt: skip
    same = replace(summary(), comparison=Comparison(1.2, True, None, summary(False)))
    assert same.to_json()["first_divergence"] is None
