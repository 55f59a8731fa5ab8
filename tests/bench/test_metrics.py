"""A hand-made trace; every expected number was computed by hand from the definitions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from bench_fakes import FakeCodec

from dynaspec_cli.bench.bootstrap import ratio_ci95
from dynaspec_cli.bench.method import Sample, TurnTrace
from dynaspec_cli.bench.metrics import summarize
from dynaspec_cli.bench.report.verdicts import losses
from dynaspec_cli.bench.scripts import covered_by_script, script_of
from dynaspec_cli.bench.spec import parse_spec
from dynaspec_cli.engine.events import StepStats

FULL = "full+eagle2@4"
DYNA = "dynaspec@8+eagle2@4"


def ids(text: str) -> tuple[int, ...]:
    return tuple(ord(c) for c in text)


def step(accepted: int, sizes: tuple[int, ...], covered: str, head_ms: float) -> StepStats:
    hits = tuple(c == "1" for c in covered)
    return StepStats(4, accepted, 3, sizes, hits, {"head": head_ms / 1000})


def turn(text: str, decode_s: float, steps: tuple[StepStats, ...] = ()) -> TurnTrace:
    return TurnTrace(5, ids(text), 0.1, decode_s, "length", steps)


def sample(method: str, name: str, task: str, trace: TurnTrace) -> Sample:
    scripts = covered_by_script([trace], task, lambda i: FakeCodec().decode([i]))
    exact = None if method == "ar" else {"verdict": "identical", "turns": []}
    return Sample("s", name, task, method, 0, (trace,), scripts, (), exact)


def trace_samples() -> list[Sample]:
    a, b = "xabдж1cd字", "x=(1)"
    plain = (StepStats(0, 0, 0),)
    return [
        sample("ar", "A", "conversation", turn(a, 0.8, plain * 8)),
        sample("ar", "B", "code", turn(b, 0.2, plain * 4)),
        sample(
            FULL,
            "A",
            "conversation",
            turn(a, 0.4, tuple(step(n, (64,), "1", 8) for n in (3, 2, 0))),
        ),
        sample(FULL, "B", "code", turn(b, 0.2, tuple(step(n, (64,), "1", 8) for n in (1, 1)))),
        sample(
            DYNA,
            "A",
            "conversation",
            turn(
                a,
                0.32,
                (step(2, (8, 8), "110", 2), step(2, (8, 4), "11", 2), step(1, (8, 8), "10", 2)),
            ),
        ),
        sample(
            DYNA,
            "B",
            "code",
            turn(b, 0.08, (step(1, (8,), "11", 5), step(0, (4, 4), "0", 5), step(0, (8,), "0", 5))),
        ),
    ]


def summary(samples: list[Sample]) -> dict[str, Any]:
    specs = [parse_spec(s) for s in ("ar", FULL, DYNA)]
    return summarize(samples, specs, {}, default_nodes=16, seed=1, checked=True)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["task"], r["method"]): r for r in summary(trace_samples())["rows"]}


def test_every_task_and_their_union_has_a_row_a_method(rows: dict) -> None:
    assert set(rows) == {
        (t, m) for t in ("conversation", "code", "all") for m in ("ar", FULL, DYNA)
    }


def test_tokens_per_second_pool_decode_tokens_over_decode_seconds(rows: dict) -> None:
    # 8 + 4 tokens after the first ones, over 0.8 + 0.2, 0.4 + 0.2 and 0.32 + 0.08 seconds.
    assert rows["all", "ar"]["tokens_per_second"] == pytest.approx(12.0)
    assert rows["all", FULL]["tokens_per_second"] == pytest.approx(20.0)
    assert rows["all", DYNA]["tokens_per_second"] == pytest.approx(30.0)
    assert rows["all", DYNA]["new_tokens"] == 14
    assert rows["all", DYNA]["prompts"] == 2


def test_speedup_and_its_paired_interval(rows: dict) -> None:
    full = rows["all", FULL]
    assert full["speedup"] == pytest.approx(20 / 12)
    # Two prompts: the draws AA, AB, BB have ratios 2, 5/3 and 1 with chances 1/4, 1/2, 1/4.
    assert full["speedup_ci95"] == pytest.approx([1.0, 2.0])
    # Each prompt alone gives 2.5, so that pairing leaves no spread at all.
    assert rows["all", DYNA]["speedup"] == pytest.approx(2.5)
    assert rows["all", DYNA]["speedup_ci95"] == pytest.approx([2.5, 2.5])
    assert rows["all", "ar"]["speedup"] == pytest.approx(1.0)
    # One prompt gives no interval.
    assert rows["code", DYNA]["speedup"] == pytest.approx(2.5)
    assert rows["code", DYNA]["speedup_ci95"] is None


def test_spec_bench_speedup_averages_questions_with_prefill(rows: dict) -> None:
    mine = (9 / 0.42 + 5 / 0.18) / 2
    plain = (9 / 0.9 + 5 / 0.3) / 2
    assert rows["all", DYNA]["speedup_spec_bench"] == pytest.approx(mine / plain)


def test_prefill_is_a_mean_over_prompts_and_repeats() -> None:
    samples = trace_samples()
    repeats = [dataclasses.replace(s, repeat=2) for s in samples]
    for given in (samples, samples + repeats):
        rows = {(r["task"], r["method"]): r for r in summary(given)["rows"]}
        assert rows["all", DYNA]["prefill_s_per_prompt"] == pytest.approx(0.1)


def test_acceptance_length_and_recovery(rows: dict) -> None:
    full, dyna, ar = rows["all", FULL], rows["all", DYNA], rows["all", "ar"]
    assert (full["num_spec_steps"], full["num_accepted_draft_tokens"]) == (5, 7)
    assert full["mean_acceptance_length"] == pytest.approx(2.4)
    assert (dyna["num_spec_steps"], dyna["num_accepted_draft_tokens"]) == (6, 6)
    assert dyna["mean_acceptance_length"] == pytest.approx(2.0)
    assert (dyna["num_draft_tokens"], dyna["draft_acceptance_rate"]) == (24, pytest.approx(0.25))
    assert dyna["recovery"] == pytest.approx(2.0 / 2.4)
    # Prompt A alone: (8/3) / (8/3); prompt B alone: (4/3) / (4/2).
    assert dyna["recovery_ci95"] == pytest.approx([2 / 3, 1.0])
    assert full["recovery"] == pytest.approx(1.0)
    assert (ar["mean_acceptance_length"], ar["num_spec_steps"], ar["recovery"]) == (1.0, 0, None)


def test_acceptance_by_position(rows: dict) -> None:
    dyna = rows["all", DYNA]
    # Accepted 2, 2, 1, 1, 0, 0: four steps reach 1, two reach 2, none reaches 3.
    assert dyna["acceptance_by_position"] == pytest.approx([4 / 6, 2 / 4, 0.0])
    assert dyna["unconditional_acceptance_by_position"] == pytest.approx([4 / 6, 2 / 6, 0.0])
    tau = 1 + sum(math.prod(dyna["acceptance_by_position"][: i + 1]) for i in range(3))
    assert tau == pytest.approx(dyna["mean_acceptance_length"])


def test_coverage_by_position_and_script(rows: dict) -> None:
    dyna = rows["all", DYNA]
    assert dyna["coverage"] == pytest.approx(7 / 11)
    assert dyna["coverage_by_position"] == pytest.approx([4 / 6, 3 / 4, 0.0])
    by_script = {
        name: (value["coverage"], value["positions"])
        for name, value in dyna["coverage_by_script"].items()
    }
    assert by_script == {
        "Latin": (1.0, 3),
        "Cyrillic": (0.5, 2),
        "common": (1.0, 1),
        "CJK": (0.0, 1),
        "code": (0.5, 4),
    }
    assert rows["all", "ar"]["coverage"] is None


def test_shortlist_size_is_a_mean_over_head_calls(rows: dict) -> None:
    # A: 16 + 12 + 16, B: 8 + 8 + 8 tokens in ten calls.
    assert rows["all", DYNA]["mean_shortlist_size"] == pytest.approx(6.8)


def test_phase_ms_is_a_mean_over_steps(rows: dict) -> None:
    assert rows["all", DYNA]["phase_ms"]["head"] == pytest.approx((3 * 2 + 3 * 5) / 6)
    assert rows["all", DYNA]["phase_ms"]["verify"] == 0.0


def test_a_prompt_counts_by_its_worst_verdict() -> None:
    samples = trace_samples()
    worse = [
        Sample(
            s.suite, s.id, s.task, s.method, 1, s.turns, {}, (), {"verdict": verdict, "turns": []}
        )
        for s, verdict in zip(samples[4:], ("tie", "mismatch"), strict=True)
    ]
    rows = {(r["task"], r["method"]): r for r in summary(samples + worse)["rows"]}
    counts = {k: rows["all", DYNA][k] for k in ("identical", "ties", "mismatches", "mismatch_ids")}
    assert counts == {"identical": 0, "ties": 1, "mismatches": 1, "mismatch_ids": ["B"]}
    reference = {k: rows["all", "ar"][k] for k in ("identical", "ties", "mismatches")}
    assert reference == {"identical": 2, "ties": 0, "mismatches": 0}


def test_ratios_use_only_prompts_that_both_arms_have() -> None:
    samples = [s for s in trace_samples() if (s.method, s.id) != ("ar", "B")]
    rows = {(r["task"], r["method"]): r for r in summary(samples)["rows"]}
    # Prompt A alone, although full's own tokens per second pool both prompts.
    assert rows["all", FULL]["speedup"] == pytest.approx(2.0)
    assert rows["all", FULL]["tokens_per_second"] == pytest.approx(20.0)
    assert rows["code", FULL]["speedup"] is None


def test_without_ar_or_full_ratios_are_null() -> None:
    samples = [s for s in trace_samples() if s.method == DYNA]
    row = summarize(samples, [parse_spec(DYNA)], {}, default_nodes=16, seed=1, checked=False)[
        "rows"
    ][-1]
    assert row["speedup"] is None
    assert row["speedup_ci95"] is None
    assert row["recovery"] is None


def test_recovery_pairs_a_bare_tree_with_its_default_size() -> None:
    rename = {"ar": "ar", FULL: "full+eagle2", DYNA: "dynaspec@8+eagle2@4"}
    samples = [
        Sample(s.suite, s.id, s.task, rename[s.method], 0, s.turns, s.scripts)
        for s in trace_samples()
    ]
    specs = [parse_spec(s) for s in rename.values()]
    rows = summarize(samples, specs, {}, default_nodes=4, seed=1, checked=False)["rows"]
    assert rows[-1]["recovery"] == pytest.approx(2.0 / 2.4)
    rows = summarize(samples, specs, {}, default_nodes=16, seed=1, checked=False)["rows"]
    assert rows[-1]["recovery"] is None


def test_pairs_compare_every_speculative_arm() -> None:
    pairs = {(p["method"], p["over"]): p for p in summary(trace_samples())["pairs"]}
    assert set(pairs) == {(FULL, "ar"), (FULL, DYNA), (DYNA, "ar"), (DYNA, FULL)}
    assert pairs[DYNA, FULL]["speed_ratio"] == pytest.approx(1.5)
    assert pairs[DYNA, FULL]["acceptance_length_ratio"] == pytest.approx(2.0 / 2.4)


def test_interval_of_a_pooled_ratio_has_its_nominal_coverage() -> None:
    # Ratios with a known pooled value of 2; the interval should hold it about 95 times in 100.
    held = 0
    trials = 300
    generator = np.random.default_rng(0)
    for trial in range(trials):
        tokens = generator.integers(20, 60, 40).astype(float)
        base = tokens / generator.normal(40, 4, 40)
        mine = tokens / 80 * generator.normal(1.0, 0.1, 40) * (base * 40 / tokens)
        interval = ratio_ci95((tokens, mine), (tokens, base), seed=trial, draws=999)
        assert interval is not None
        held += interval[0] <= 2.0 <= interval[1]
    assert 0.88 * trials < held <= trials


def test_interval_pairs_prompts() -> None:
    # Prompts differ a hundredfold in speed, the ratio not at all.
    seconds = [0.01, 0.1, 1.0]
    tokens = [10.0, 10.0, 10.0]
    interval = ratio_ci95((tokens, [s / 2 for s in seconds]), (tokens, seconds), seed=0)
    assert interval == pytest.approx((2.0, 2.0))


def test_a_pair_turned_round_is_the_pair_measured_the_other_way() -> None:
    """On data with spread: the inverse of a BCa interval is that of the inverse ratio."""
    generator = np.random.default_rng(4)
    tokens, seconds = generator.integers(20, 60, 9).astype(float), generator.uniform(1, 2, 9)
    other = seconds * generator.lognormal(0, 0.4, 9)
    there = ratio_ci95((tokens, seconds), (tokens, other), seed=5)
    back = ratio_ci95((tokens, other), (tokens, seconds), seed=5)
    assert there is not None
    assert back is not None
    assert [1 / back[1], 1 / back[0]] == pytest.approx(list(there), rel=2e-2)


@pytest.mark.parametrize(
    ("arms", "interval"),
    [
        (([3.0], [1.0], [2.0], [1.0]), None),
        (([3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]), None),
        (([3.0, 6.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]), (3.0, 3.0)),
        (([3.0, 0.0], [1.0, 0.0], [2.0, 3.0], [1.0, 1.0]), None),
        (([], [], [], []), None),
    ],
    ids=["one", "one that counts", "constant", "draws without tokens", "none"],
)
def test_intervals_of_degenerate_samples(
    arms: tuple[list[float], ...], interval: tuple[float, float] | None
) -> None:
    a, b, c, d = arms
    assert ratio_ci95((a, b), (c, d), seed=0) == (interval and pytest.approx(interval))


def test_an_interval_lies_around_its_ratio_and_narrows_with_more_prompts() -> None:
    widths = []
    for units in (5, 50):
        generator = np.random.default_rng(1)
        tokens = generator.integers(20, 128, units).astype(float)
        base = tokens / 45
        mine = base / generator.lognormal(np.log(2.6), 0.35, units)
        interval = ratio_ci95((tokens, mine), (tokens, base), seed=1)
        assert interval is not None
        assert interval[0] < base.sum() / mine.sum() < interval[1]
        widths.append(interval[1] - interval[0])
    assert widths[1] < widths[0]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (" the", "Latin"),
        ("é", "Latin"),
        ("мир", "Cyrillic"),
        ("世", "CJK"),
        ("の", "CJK"),
        ("한", "CJK"),
        ("لا", "Arabic"),
        ("में", "Devanagari"),
        ("ไทย", "Thai"),
        ("ि", "Devanagari"),
        ("λ", "other"),
        ("12, ", "common"),
        ("\ufffd", "common"),
        ("👩", "common"),
        ("", "common"),
        ('("x', "Latin"),
    ],
)
def test_script_of(text: str, script: str) -> None:
    assert script_of(text) == script


def test_samples_survive_json() -> None:
    for row in trace_samples():
        assert Sample.from_json(row.to_json()) == row


def test_losses_to_another_shortlist_are_said() -> None:
    # fr-spec gets full's trace: faster never, but it accepts more on both tasks.
    rival = "fr-spec@8+eagle2@4"
    samples = [
        Sample(s.suite, s.id, s.task, rival if s.method == FULL else s.method, 0, s.turns)
        for s in trace_samples()
    ]
    specs = [parse_spec(s) for s in ("ar", rival, DYNA)]
    found = losses(summarize(samples, specs, {}, default_nodes=16, seed=1, checked=False))
    assert found == [
        # A: 2 + 2 + 1 of 3 steps against 3 + 2 + 0 of 3; B: 1 of 3 steps against 2 of 2.
        f"{DYNA} accepts less a step than {rival} on 1 of 2 tasks: code 1.33 against 2.00."
    ]
