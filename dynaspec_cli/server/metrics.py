"""Counters in Prometheus' text format. Definitions of the ratios: engine/stats.py."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dynaspec_cli.engine.events import GenerationResult

OUTCOMES = ("completed", "cancelled", "failed", "refused")

TOTALS = {
    "prompt_tokens": "Prompt tokens of the requests that ran.",
    "cached_prompt_tokens": "Of these, tokens that the request before had read.",
    "generated_tokens": "New tokens.",
    "decode_tokens": "New tokens but the first of each request.",
    "decode_seconds": "Seconds from the first to the last token.",
    "queue_seconds": "Seconds that requests waited.",
    "verifications": "Verifications of a draft tree.",
    "draft_tokens": "Draft tokens verified.",
    "accepted_draft_tokens": "Draft tokens accepted.",
    "draft_steps": "Calls of the shortlisted head.",
    "shortlist_tokens": "Tokens scored in them.",
}


class Metrics:
    """Sums since the start; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = dict.fromkeys(OUTCOMES, 0)
        self._sums = dict.fromkeys(TOTALS, 0.0)

    def count(self, outcome: str) -> None:
        """A request that never ran to an end."""
        with self._lock:
            self._requests[outcome] += 1

    def add(self, result: GenerationResult, outcome: str, queued_s: float) -> None:
        """A request that ran."""
        sizes = [size for step in result.steps for size in step.shortlist_sizes]
        values = {
            "prompt_tokens": result.prompt_tokens,
            "cached_prompt_tokens": result.cached_prompt_tokens,
            "generated_tokens": result.new_tokens,
            "decode_tokens": max(result.new_tokens - 1, 0),
            "decode_seconds": result.decode_s,
            "queue_seconds": queued_s,
            "verifications": result.num_spec_steps,
            "draft_tokens": result.num_draft_tokens,
            "accepted_draft_tokens": result.num_accepted_draft_tokens,
            "draft_steps": len(sizes),
            "shortlist_tokens": sum(sizes),
        }
        with self._lock:
            self._requests[outcome] += 1
            for name, value in values.items():
                self._sums[name] += value

    def text(self, running: int, waiting: int) -> str:
        """What /metrics answers."""
        with self._lock:
            requests, sums = dict(self._requests), dict(self._sums)
        lines = [
            "# HELP dynaspec_requests_total Requests by how they ended.",
            "# TYPE dynaspec_requests_total counter",
            *(f'dynaspec_requests_total{{outcome="{o}"}} {n}' for o, n in requests.items()),
        ]
        for name, words in TOTALS.items():
            lines += _metric(f"{name}_total", "counter", words, sums[name])
        steps = sums["verifications"]
        accepted = sums["accepted_draft_tokens"]
        for name, words, value in (
            ("requests_running", "Requests that generate.", running),
            ("requests_waiting", "Requests in the queue.", waiting),
            (
                "tokens_per_second",
                "Decode tokens over decode seconds.",
                _ratio(sums["decode_tokens"], sums["decode_seconds"]),
            ),
            (
                "mean_acceptance_length",
                "Tokens settled per verification, bonus token included.",
                1.0 + _ratio(accepted, steps),
            ),
            (
                "mean_shortlist_size",
                "Tokens scored per draft step.",
                _ratio(sums["shortlist_tokens"], sums["draft_steps"]),
            ),
            ("resident_memory_bytes", "Memory of the process.", resident_bytes()),
        ):
            lines += _metric(name, "gauge", words, value)
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, words: str, value: float) -> list[str]:
    name = f"dynaspec_{name}"
    return [f"# HELP {name} {words}", f"# TYPE {name} {kind}", f"{name} {value:.10g}"]


def _ratio(over: float, under: float) -> float:
    return over / under if under else 0.0


def resident_bytes() -> int:
    """Memory of this process that is not swapped out; 0 where Linux's /proc is missing."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
