"""Numbers said in words, so that a loss reads as a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynaspec_cli.bench.spec import MethodSpec, parse_spec
from dynaspec_cli.checkpoints.bundle import is_bundle, read_config
from dynaspec_cli.shortlist.registry import SHORTLISTS

Row = Mapping[str, Any]

WIN, LOSS, EVEN = "win", "loss", "even"


def speed_tone(row: Row) -> str:
    """``win``: the interval lies above 1; ``loss``: the ratio or the whole interval lies below
    1."""
    ratio, interval = row.get("speedup"), row.get("speedup_ci95")
    if ratio is None or row["method"] == "ar":
        return EVEN
    if interval is None:
        return EVEN if ratio == 1 else WIN if ratio > 1 else LOSS
    if interval[1] < 1:
        return LOSS
    return WIN if interval[0] > 1 else EVEN


def speed_words(row: Row) -> str:
    """One clause on a row's speed against autoregressive decoding."""
    ratio, interval = row.get("speedup"), row.get("speedup_ci95")
    if row["method"] == "ar":
        return "the baseline"
    if ratio is None:
        # Spec-Bench's ratio counts the prefill's token, so that it has a value wherever ar ran.
        if row.get("speedup_spec_bench") is None:
            return "no ratio: ar was not run"
        return "no ratio: ar or this method gave no token after the first, so no decoding was timed"
    if interval is None:
        side = {WIN: "faster", LOSS: "slower", EVEN: "as fast"}[speed_tone(row)]
        return f"{ratio:.2f}x of ar, {side}, but too few prompts for an interval"
    span = f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    tone = speed_tone(row)
    if tone == WIN:
        return f"{ratio:.2f}x, faster than ar ({span})"
    if tone == LOSS:
        return f"{ratio:.2f}x, slower than ar ({span})"
    return f"{ratio:.2f}x, no difference from ar shown ({span})"


def is_peer(row: Row) -> bool:
    """Peers compute in a numerics of their own, so that another answer of theirs is no bug of
    ours."""
    return parse_spec(row["method"]).kind == "peer"


def exact_tone(row: Row) -> str:
    return LOSS if row.get("mismatches") and not is_peer(row) else EVEN


def exact_words(row: Row) -> str:
    """One clause on a row's answers against the target's own."""
    if row["method"] == "ar":
        return "the reference"
    if "identical" not in row:
        return "not checked"
    identical, ties, wrong = row["identical"], row["ties"], row["mismatches"]
    tied = f"{ties} tie{'' if ties == 1 else 's'}"
    if wrong and is_peer(row):
        return f"{identical} identical, {tied}, {wrong} differ"
    if wrong:
        named = ", ".join(row["mismatch_ids"][:5]) + (", ..." if wrong > 5 else "")
        return f"{wrong} wrong ({named}), {tied}, {identical} identical"
    if ties:
        return f"{identical} identical, {tied}"
    return f"all {identical} identical"


def headline(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(tone, sentence) for each method over all prompts, the baseline left out."""
    lines = []
    for row in summary["overall"]:
        if row["method"] == "ar":
            continue
        tone = LOSS if exact_tone(row) == LOSS else speed_tone(row)
        sentence = f"{row['method']}: {speed_words(row)}"
        if row.get("recovery") is not None and parse_spec(row["method"]).shortlist != "full":
            size = row["mean_shortlist_size"]
            of = "" if size is None else f" with {size:,.0f} tokens scored"
            sentence += f"; keeps {100 * row['recovery']:.1f} % of the full acceptance length{of}"
        if "identical" in row:
            sentence += f"; answers {exact_words(row)}"
        lines.append((tone, sentence + "."))
    return lines


def losses(summary: Mapping[str, Any]) -> list[str]:
    """Every place where a method lost, one sentence a kind of loss: wrong answers, tasks slower
    than ar, tasks on which a ``dynaspec`` arm accepts less or is slower than another shortlist
    with its tree."""
    found = [
        f"{row['method']}: {exact_words(row)}."
        for row in summary["overall"]
        if exact_tone(row) == LOSS
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in summary["rows"]:
        if row["task"] != "all":
            groups.setdefault((row["suite"], row["task"]), []).append(row)
    several = len({suite for suite, _ in groups}) > 1
    kinds: dict[str, list[str]] = {}
    for (suite, task), rows in groups.items():
        where = f"{task} ({suite})" if several else task
        for row in rows:
            if speed_tone(row) == LOSS:
                kinds.setdefault(f"{row['method']} is slower than ar", []).append(
                    f"{where} {row['speedup']:.2f}x"
                )
        for kind, words in _lost_to_rivals(rows):
            kinds.setdefault(kind, []).append(f"{where} {words}")
    return found + [
        f"{kind} on {len(places)} of {len(groups)} tasks: {', '.join(places)}."
        for kind, places in kinds.items()
    ]


def _shortlist(spec: MethodSpec) -> str | None:
    """The shortlist's name; of a bundle's folder by itself the method that it is made for."""
    name = None if spec.shortlist is None else spec.shortlist.partition("=")[0]
    if name is None or name in SHORTLISTS or not is_bundle(name):
        return name
    return read_config(Path(name)).method


def _lost_to_rivals(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(what was lost, by how much) of the ``dynaspec`` arms of one task."""
    specs = [(parse_spec(row["method"]), row) for row in rows]
    found: list[tuple[str, str]] = []
    for spec, row in specs:
        if _shortlist(spec) != "dynaspec":
            continue
        for rival, other in specs:
            if _shortlist(rival) in (None, "full", "dynaspec") or rival.family != spec.family:
                continue
            mine, theirs = row["tokens_per_second"], other["tokens_per_second"]
            if theirs > mine > 0:
                ratio = f"{mine / theirs:.2f}x"
                found.append((f"{row['method']} is slower than {rival}", ratio))
            tau, their_tau = row["mean_acceptance_length"], other["mean_acceptance_length"]
            if their_tau > tau:
                both = f"{tau:.2f} against {their_tau:.2f}"
                found.append((f"{row['method']} accepts less a step than {rival}", both))
    return found
