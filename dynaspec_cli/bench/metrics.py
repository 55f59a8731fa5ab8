"""From samples to the rows of ``summary.json``. Every number is one of engine/stats.py, pooled.

Pooling: the traces of all prompts, turns and repeats of a group are concatenated. Ratios (speedup,
recovery) are paired: both arms are pooled over the prompts that both have.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynaspec_cli.bench.bootstrap import ratio_ci95
from dynaspec_cli.bench.method import Sample
from dynaspec_cli.bench.spec import MethodSpec
from dynaspec_cli.engine import stats

ALL = "all"
"""The union of a suite's tasks, and of all suites."""

MAX_PAIRED_METHODS = 16
"""Beyond this many arms (sweeps) the table of every arm against every other is left out."""

_Key = tuple[str, str]  # (suite, prompt id)


class _Arm:
    """The samples of one method in one group, by prompt."""

    def __init__(self, samples: Sequence[Sample]):
        self.by_prompt: dict[_Key, list[Sample]] = defaultdict(list)
        for sample in samples:
            self.by_prompt[(sample.suite, sample.id)].append(sample)
        self.samples = list(samples)
        self.steps = [step for sample in samples for step in sample.steps]

    def sums(self, keys: Sequence[_Key], value: Callable[[Sample], float]) -> list[float]:
        """One sum a prompt, over its repeats and turns."""
        return [sum(value(s) for s in self.by_prompt[key]) for key in keys]


def _common(a: _Arm, b: _Arm) -> list[_Key]:
    return [key for key in a.by_prompt if key in b.by_prompt]


def _speed_ratio(arm: _Arm, base: _Arm, seed: int) -> tuple[float | None, Any]:
    """Ratio of pooled decode tokens per second over common prompts, with its 95 % interval."""
    keys = _common(arm, base)
    sums = [
        side.sums(keys, value)
        for side in (arm, base)
        for value in (lambda s: s.decode_tokens, lambda s: s.decode_s)
    ]
    speed, base_speed = (
        stats.tokens_per_second(int(sum(sums[i])), sum(sums[i + 1])) for i in (0, 2)
    )
    ratio = stats.speedup(speed, base_speed)
    if ratio is None or speed == 0:
        return None, None
    interval = ratio_ci95((sums[0], sums[1]), (sums[2], sums[3]), seed)
    return ratio, None if interval is None else list(interval)


def _spec_bench_speedup(arm: _Arm, base: _Arm) -> float | None:
    """Spec-Bench's own definition: new tokens over wall-clock seconds *with* prefill, a question
    at a time, averaged over questions in each arm, then divided."""
    keys = _common(arm, base)

    def mean_speed(side: _Arm) -> float:
        tokens = side.sums(keys, lambda s: s.new_tokens)
        seconds = side.sums(keys, lambda s: s.prefill_s + s.decode_s)
        return sum(t / s for t, s in zip(tokens, seconds, strict=True) if s > 0) / len(keys)

    if not keys or mean_speed(base) == 0:
        return None
    return mean_speed(arm) / mean_speed(base)


def _tau_ratio(arm: _Arm, full: _Arm, seed: int) -> tuple[float | None, Any]:
    """Ratio of mean acceptance lengths over common prompts, with its 95 % interval."""
    keys = _common(arm, full)
    if not keys:
        return None, None
    pooled = [
        [step for key in keys for sample in side.by_prompt[key] for step in sample.steps]
        for side in (arm, full)
    ]
    if not pooled[0] or not pooled[1]:
        return None, None
    sums = [
        side.sums(keys, value)
        for side in (arm, full)
        for value in (
            lambda s: len(s.steps) + stats.num_accepted_draft_tokens(s.steps),
            lambda s: len(s.steps),
        )
    ]
    interval = ratio_ci95((sums[0], sums[1]), (sums[2], sums[3]), seed)
    return stats.recovery(*pooled), None if interval is None else list(interval)


def _exactness(arm: _Arm) -> dict[str, Any]:
    """Prompts by their worst verdict over turns and repeats."""
    counts = {"identical": 0, "tie": 0, "mismatch": 0}
    wrong: list[str] = []
    for (_, prompt_id), samples in arm.by_prompt.items():
        verdicts = {s.exact["verdict"] for s in samples if s.exact is not None}
        for verdict in ("mismatch", "tie", "identical"):
            if verdict in verdicts:
                counts[verdict] += 1
                if verdict == "mismatch":
                    wrong.append(prompt_id)
                break
    return {
        "identical": counts["identical"],
        "ties": counts["tie"],
        "mismatches": counts["mismatch"],
        "mismatch_ids": wrong,
    }


def _reference(arm: _Arm) -> dict[str, Any]:
    """``ar`` is what the others are compared with."""
    return {"identical": len(arm.by_prompt), "ties": 0, "mismatches": 0, "mismatch_ids": []}


def _merge_scripts(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    sums: dict[str, list[int]] = {}
    for sample in samples:
        for script, (hits, positions) in sample.scripts.items():
            entry = sums.setdefault(script, [0, 0])
            entry[0] += hits
            entry[1] += positions
    return {
        script: {"coverage": hits / positions, "positions": positions}
        for script, (hits, positions) in sums.items()
        if positions
    }


def _row(
    spec: MethodSpec,
    group: tuple[str, str],
    arm: _Arm,
    ar: _Arm | None,
    full: _Arm | None,
    seed: int,
    checked: bool,
) -> dict[str, Any]:
    speculative = spec.kind == "speculative"
    steps = arm.steps
    tokens = sum(s.decode_tokens for s in arm.samples)
    speed, speed_ci = (None, None) if ar is None else _speed_ratio(arm, ar, seed)
    if spec.kind == "ar":
        speed_ci = None if speed is None else [1.0, 1.0]
    recovered, recovered_ci = (
        (None, None) if full is None or not speculative else _tau_ratio(arm, full, seed)
    )
    row: dict[str, Any] = {
        "method": str(spec),
        "suite": group[0],
        "task": group[1],
        "prompts": len(arm.by_prompt),
        "new_tokens": sum(s.new_tokens for s in arm.samples),
        "tokens_per_second": stats.tokens_per_second(tokens, sum(s.decode_s for s in arm.samples)),
        "speedup": speed,
        "speedup_ci95": speed_ci,
        "speedup_spec_bench": None if ar is None else _spec_bench_speedup(arm, ar),
        "prefill_s_per_prompt": sum(s.prefill_s for s in arm.samples)
        / max(len(arm.samples), 1),  # a sample a prompt and repeat
        "mean_acceptance_length": None if spec.kind == "peer" else 1.0,
        "recovery": recovered,
        "recovery_ci95": recovered_ci,
        "coverage": None,
        "coverage_by_position": [],
        "coverage_by_script": {},
        "mean_shortlist_size": None,
        "acceptance_by_position": [],
        "unconditional_acceptance_by_position": [],
        "draft_acceptance_rate": None,
        "num_spec_steps": None if spec.kind == "peer" else 0,
        "num_draft_tokens": None if spec.kind == "peer" else 0,
        "num_drawn": None if spec.kind == "peer" else 0,
        "num_distinct": None if spec.kind == "peer" else 0,
        "num_accepted_draft_tokens": None if spec.kind == "peer" else 0,
        "phase_ms": stats.phase_ms(steps) if steps else None,
    }
    if speculative:
        row |= {
            "mean_acceptance_length": stats.mean_acceptance_length(steps),
            "coverage": stats.coverage(steps),
            "coverage_by_position": list(stats.coverage_by_position(steps)),
            "coverage_by_script": _merge_scripts(arm.samples),
            "mean_shortlist_size": stats.mean_shortlist_size(steps),
            "acceptance_by_position": list(stats.acceptance_by_position(steps)),
            "unconditional_acceptance_by_position": list(
                stats.unconditional_acceptance_by_position(steps)
            ),
            "draft_acceptance_rate": stats.draft_acceptance_rate(steps),
            "num_spec_steps": len(steps),
            "num_draft_tokens": stats.num_draft_tokens(steps),
            "num_drawn": stats.num_drawn(steps),
            "num_distinct": stats.num_distinct(steps),
            "num_accepted_draft_tokens": stats.num_accepted_draft_tokens(steps),
        }
    if checked:
        row |= _exactness(arm) if spec.kind != "ar" else _reference(arm)
    return row


def _groups(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """(suite, task) pairs in order of appearance, each suite's union after its tasks."""
    groups: list[tuple[str, str]] = []
    for suite in dict.fromkeys(s.suite for s in samples):
        tasks = dict.fromkeys(s.task for s in samples if s.suite == suite)
        groups += [(suite, task) for task in tasks] + [(suite, ALL)]
    return groups


def summarize(
    samples: Sequence[Sample],
    specs: Sequence[MethodSpec],
    settings: Mapping[str, Any],
    *,
    default_nodes: int,
    seed: int,
    checked: bool,
) -> dict[str, Any]:
    """The object of ``summary.json``. ``default_nodes`` is the tree size that a spec without one
    had.

    ``rows``: suite x task x method. ``overall``: the same over the union of all suites.
    ``pairs``: every speculative arm against every other, over the union.
    """
    full_specs = [s.with_nodes(default_nodes) for s in specs]

    def arms_of(keep: Callable[[Sample], bool]) -> dict[str, _Arm]:
        by_method: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if keep(sample):
                by_method[sample.method].append(sample)
        return {name: _Arm(group) for name, group in by_method.items()}

    def rows_of(group: tuple[str, str], arms: Mapping[str, _Arm]) -> list[dict[str, Any]]:
        fulls = {
            full.family: arms[str(spec)]
            for spec, full in zip(specs, full_specs, strict=True)
            if full.shortlist == "full" and str(spec) in arms
        }
        return [
            _row(
                spec, group, arms[str(spec)], arms.get("ar"), fulls.get(full.family), seed, checked
            )
            for spec, full in zip(specs, full_specs, strict=True)
            if str(spec) in arms
        ]

    rows: list[dict[str, Any]] = []
    for suite, task in _groups(samples):
        rows += rows_of(
            (suite, task),
            arms_of(lambda s, suite=suite, task=task: s.suite == suite and task in (s.task, ALL)),  # type: ignore[misc]
        )
    everything = arms_of(lambda sample: True)
    return {
        "schema": 1,
        "settings": dict(settings),
        "rows": rows,
        "overall": rows_of((ALL, ALL), everything),
        "pairs": _pairs(specs, everything, seed),
    }


def _pairs(
    specs: Sequence[MethodSpec], arms: Mapping[str, _Arm], seed: int
) -> list[dict[str, Any]]:
    names = [str(s) for s in specs if str(s) in arms]
    if len(names) > MAX_PAIRED_METHODS:
        return []
    kinds = {str(s): s.kind for s in specs}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, over in itertools.combinations(names, 2):
        speed, speed_ci = _speed_ratio(arms[name], arms[over], seed)
        both = kinds[name] == kinds[over] == "speculative"
        tau, tau_ci = _tau_ratio(arms[name], arms[over], seed) if both else (None, None)
        pair = {
            "method": name,
            "over": over,
            "speed_ratio": speed,
            "speed_ratio_ci95": speed_ci,
            "acceptance_length_ratio": tau,
            "acceptance_length_ratio_ci95": tau_ci,
        }
        found[name, over], found[over, name] = pair, _turned(pair)
    order = itertools.permutations(names, 2)
    return [found[pair] for pair in order if kinds[pair[0]] != "ar"]


def _turned(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round. BCa intervals follow a monotone map, so their ends are inverted too."""

    def inverse(value: Any) -> Any:
        if isinstance(value, list):
            return [inverse(x) for x in reversed(value)]
        return 1 / value if value else None

    turned = {key: inverse(value) for key, value in pair.items() if key not in ("method", "over")}
    return {"method": pair["over"], "over": pair["method"]} | turned
