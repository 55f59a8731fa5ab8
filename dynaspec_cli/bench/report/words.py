"""What every form of the report says: the definitions of its numbers and the run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynaspec_cli.bench.bootstrap import FEW_UNITS

DEFINITIONS = (
    (
        "tokens/s",
        "decode tokens over decode seconds, pooled over prompts. The first token of an answer "
        "comes from the prefill and is not counted; ids are counted by one function for every "
        "method.",
    ),
    (
        "speedup",
        "tokens/s of a method over tokens/s of ar, both pooled over the same prompts of the same "
        "process. Intervals: 95 %, bias-corrected and accelerated (BCa), from 10,000 paired "
        "draws of prompts; they say how the ratio varies with the prompts, not with the machine.",
    ),
    (
        "tau, mean acceptance length",
        "1 + accepted draft tokens / verifications, pooled over steps; the bonus token is counted.",
    ),
    (
        "acceptance by position",
        "conditional: steps that accepted at least i over steps that accepted at least i - 1; "
        "unconditional: over all steps.",
    ),
    ("recovery", "tau with a shortlist over tau with the full vocabulary, same drafter and tree."),
    (
        "coverage",
        "share of verified positions whose target token was in the shortlist from which that "
        "position was drafted. It tells a token that the shortlist lacked from one that the "
        "drafter missed.",
    ),
    ("shortlist", "tokens scored a draft step, mean over all calls of the shortlisted head."),
    (
        "speedup as Spec-Bench defines it",
        "new tokens over seconds with prefill, a question at a time, averaged over questions, "
        "over the same of ar; in summary.json as speedup_spec_bench.",
    ),
    (
        "identical, tie, mismatch",
        "greedy answers against ar's. At the first difference one plain target pass gives the "
        "logits: a tie if both ids lie within the stated bound of the largest, otherwise a "
        "mismatch (a bug).",
    ),
)


def caution(summary: Mapping[str, Any]) -> str:
    """What intervals from few prompts mean; "" where every task has enough."""
    counts = [row["prompts"] for row in summary["rows"] if row["speedup_ci95"] is not None]
    if not counts or min(counts) >= FEW_UNITS:
        return ""
    return (
        f"Some intervals come from {min(counts)} prompts. From fewer than {FEW_UNITS} they are too "
        "narrow: 95 % intervals of 5 prompts held the true ratio in 80 % of simulated runs, of 12 "
        "in 89 %. Read them as a sign of size, and do not rank methods by them."
    )


def describe_run(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, as (name, value); absent settings are left out."""
    s = summary["settings"]
    rows = [
        ("model", s.get("model")),
        ("dtype, device, threads", _joined(s.get("dtype"), s.get("device"), s.get("threads"))),
        ("drafter", _drafter(s.get("drafter"), s.get("drafter_trained_tokens"))),
        ("assistant", s.get("assistant")),
        ("processor", s.get("cpu")),
        ("suites", ", ".join(f"{x['name']} ({x['prompts']} prompts)" for x in s.get("suites", []))),
        ("new tokens a turn", _per_suite(s.get("max_new_tokens"))),
        ("sampling", _sampling(s)),
        ("prompt format", s.get("prompt_format")),
        ("chat template, SHA-256", s.get("chat_template_sha256")),
        ("system prompt, SHA-256", s.get("system_prompt_sha256")),
        ("tokens kept of a turn's text", s.get("max_prompt_tokens")),
        ("repeats, warm-up runs, seed", _joined(s.get("repeats"), s.get("warmup"), s.get("seed"))),
        ("tree depth, width, default size", _joined(*(s.get(f"tree_{k}") for k in _TREE_KEYS))),
        ("tree threshold", s.get("tree_threshold")),
        ("exactness", "checked (--check-exact)" if s.get("check_exact") else None),
        ("tie bound", s.get("tie_bound")),
        ("kernels", s.get("kernels")),
        ("preset", s.get("preset")),
        ("state", s.get("state") if s.get("state") != "complete" else None),
        ("versions", ", ".join(f"{k} {v}" for k, v in s.get("versions", {}).items())),
        ("started, seconds", _joined(s.get("started"), s.get("wall_s"))),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


_TREE_KEYS = ("depth", "width", "size")


def _joined(*values: Any) -> str | None:
    return None if all(v is None for v in values) else ", ".join(str(v) for v in values)


def _drafter(option: str | None, tokens: int | None) -> str | None:
    trained = None if tokens is None else f"trained on {tokens:,} tokens"
    return ", ".join(part for part in (option, trained) if part)


def _per_suite(value: Mapping[str, int] | None) -> str | None:
    if not value:
        return None
    if len(set(value.values())) == 1:
        return str(next(iter(value.values())))
    return ", ".join(f"{name}: {count}" for name, count in value.items())


def _sampling(settings: Mapping[str, Any]) -> str | None:
    if "temperature" not in settings:
        return None
    if settings["temperature"] == 0:
        return "greedy"
    keys = ("temperature", "top_k", "top_p", "min_p")
    return ", ".join(f"{key} {settings[key]}" for key in keys)
