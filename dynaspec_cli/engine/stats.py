"""The definition of every number that dynaspec reports, for one request or pooled over many.

All functions read a *trace*, a sequence of ``StepStats``. A step is one verification. Pooling over
prompts is concatenating their traces: sums are divided by sums, ratios are never averaged.

    tau = mean_acceptance_length = 1 + num_accepted_draft_tokens / num_spec_steps

counts the bonus token. The first token of a request comes from the prefill, belongs to no step and
is no decode token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dynaspec_cli.engine.events import PHASES, FinishReason, GenerationResult, StepStats

TIE_BOUND: Mapping[str, float] = {"float32": 1e-3, "float16": 0.0625, "bfloat16": 0.5}
"""Logit gap below which two decodings may differ by the order of summation alone, by dtype of the
target. A pass over one row and a pass over n rows add the same products in another order; at logits
of magnitude 16 to 32 one unit in the last place is 2e-6, 0.0156 and 0.125, and the bound allows
for its growth through the layers."""


def num_accepted_draft_tokens(steps: Sequence[StepStats]) -> int:
    """Draft tokens that verification accepted, summed over the steps; bonus tokens not counted."""
    return sum(step.accepted for step in steps)


def num_draft_tokens(steps: Sequence[StepStats]) -> int:
    """Nodes verified, roots not counted, summed over the steps."""
    return sum(step.drafted for step in steps)


def num_drawn(steps: Sequence[StepStats]) -> int:
    """Draws of policies that sample children, repeated and discarded ones too, summed."""
    return sum(step.drawn for step in steps)


def num_distinct(steps: Sequence[StepStats]) -> int:
    """Nodes that those draws gave, summed; a token drawn twice below a node is one node."""
    return sum(step.distinct for step in steps)


def mean_acceptance_length(steps: Sequence[StepStats]) -> float:
    """tau = 1 + accepted / steps: tokens settled per verification, bonus included. 1.0 without a
    step, which is also what autoregressive decoding has."""
    return 1.0 + num_accepted_draft_tokens(steps) / len(steps) if steps else 1.0


def acceptance_by_position(steps: Sequence[StepStats]) -> tuple[float, ...]:
    """Conditional acceptance alpha_i = N(accepted >= i) / N(accepted >= i - 1), i = 1, 2, ...

    N counts steps. A step whose accepted path ended in a leaf counts as not accepted at the next
    position, so that tau = 1 + sum_i prod_{j <= i} alpha_j exactly. The list ends at the deepest
    tree level, or at the first position that no step reached.
    """
    deepest = max((step.depth for step in steps), default=0)
    reached = [sum(step.accepted >= i for step in steps) for i in range(deepest + 1)]
    return tuple(hit / before for before, hit in pairwise(reached) if before)


def unconditional_acceptance_by_position(steps: Sequence[StepStats]) -> tuple[float, ...]:
    """N(accepted >= i) / N(steps), i = 1 .. deepest tree level; the sum over i is tau - 1."""
    deepest = max((step.depth for step in steps), default=0)
    return tuple(sum(s.accepted >= i for s in steps) / len(steps) for i in range(1, deepest + 1))


def draft_acceptance_rate(steps: Sequence[StepStats]) -> float | None:
    """Accepted over verified draft tokens. Low by construction for trees, where at most one path
    of many can be accepted. None where nothing was drafted."""
    drafted = num_draft_tokens(steps)
    return num_accepted_draft_tokens(steps) / drafted if drafted else None


def mean_shortlist_size(steps: Sequence[StepStats]) -> float | None:
    """Tokens scored per draft step (per call of the head), pooled. None: nothing was drafted."""
    sizes = [size for step in steps for size in step.shortlist_sizes]
    return sum(sizes) / len(sizes) if sizes else None


def coverage(steps: Sequence[StepStats]) -> float | None:
    """Share of verified positions whose target token was in the shortlist. None: not measured."""
    seen = [hit for step in steps for hit in step.covered or ()]
    return sum(seen) / len(seen) if seen else None


def coverage_by_position(steps: Sequence[StepStats]) -> tuple[float, ...]:
    """``coverage`` by draft position 1, 2, ...; positions that no step reached end the list."""
    measured = [step.covered for step in steps if step.covered]
    deepest = max((len(covered) for covered in measured), default=0)
    at = [[covered[i] for covered in measured if len(covered) > i] for i in range(deepest)]
    return tuple(sum(hits) / len(hits) for hits in at)


def phase_ms(steps: Sequence[StepStats]) -> dict[str, float]:
    """Milliseconds by phase, mean per step; every phase of ``PHASES`` is present."""
    scale = 1000.0 / len(steps) if steps else 0.0
    return {p: scale * sum(step.seconds.get(p, 0.0) for step in steps) for p in PHASES}


def tokens_per_second(decode_tokens: int, decode_s: float) -> float:
    """Decode tokens over decode seconds. Decode tokens are those emitted after the first one,
    decode seconds run from the first token to the last. 0.0 where nothing was decoded."""
    return decode_tokens / decode_s if decode_tokens > 0 and decode_s > 0 else 0.0


def speedup(tokens_per_s: float, baseline_tokens_per_s: float) -> float | None:
    """Ratio of decode tokens per second; None where the baseline decoded nothing."""
    return tokens_per_s / baseline_tokens_per_s if baseline_tokens_per_s > 0 else None


def recovery(steps: Sequence[StepStats], full_steps: Sequence[StepStats]) -> float:
    """tau with a shortlist / tau with the full vocabulary (same drafter, tree and prompts)."""
    return mean_acceptance_length(steps) / mean_acceptance_length(full_steps)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first differing token id. A sequence that is a proper prefix of the other one
    differs at its end. None: identical."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def is_tie(logit_gap: float, dtype: str) -> bool:
    """Is a logit gap small enough (``TIE_BOUND``) for the order of summation to decide?"""
    return abs(logit_gap) <= TIE_BOUND[dtype]


def summarize(
    *,
    text: str,
    token_ids: Sequence[int],
    prompt_tokens: int,
    finish_reason: FinishReason,
    steps: Sequence[StepStats],
    speculative: bool,
    time_to_first_token_s: float,
    decode_s: float,
    load_s: float,
    settings: Mapping[str, Any],
    cached_prompt_tokens: int = 0,
) -> GenerationResult:
    """The result of a request from its trace. ``num_spec_steps`` is 0 without speculation, where
    ``phase_ms`` is the mean per target pass. Times in seconds; ``time_to_first_token_s`` counts
    from the call of generate, loading not included."""
    return GenerationResult(
        text=text,
        token_ids=tuple(token_ids),
        prompt_tokens=prompt_tokens,
        new_tokens=len(token_ids),
        finish_reason=finish_reason,
        tokens_per_second=tokens_per_second(len(token_ids) - 1, decode_s),
        time_to_first_token_s=time_to_first_token_s,
        load_s=load_s,
        decode_s=decode_s,
        mean_acceptance_length=mean_acceptance_length(steps),
        num_spec_steps=len(steps) if speculative else 0,
        num_draft_tokens=num_draft_tokens(steps),
        num_accepted_draft_tokens=num_accepted_draft_tokens(steps),
        num_drawn=num_drawn(steps),
        num_distinct=num_distinct(steps),
        mean_shortlist_size=mean_shortlist_size(steps),
        phase_ms=phase_ms(steps),
        acceptance_by_position=acceptance_by_position(steps) if speculative else (),
        settings=dict(settings),
        cached_prompt_tokens=cached_prompt_tokens,
        steps=tuple(steps),
    )
