"""Speculative decoding beside autoregressive decoding of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynaspec_cli.engine.events import Comparison, Divergence, GenerationResult
from dynaspec_cli.engine.stats import first_difference, is_tie, speedup
from dynaspec_cli.protocols import Target


def compared(
    target: Target, prompt: Sequence[int], result: GenerationResult, plain: GenerationResult
) -> Comparison:
    """``result`` against the ``plain`` decoding of the same prompt ids; what was interrupted is
    compared as far as it came."""
    ours, reference = list(result.token_ids), list(plain.token_ids)
    if result.finish_reason == "interrupted":
        reference = reference[: len(ours)]
    at = first_difference(ours, reference)
    found = None if at is None else divergence(target, prompt, ours, reference, at)
    faster = speedup(result.tokens_per_second, plain.tokens_per_second)
    return Comparison(faster, at is None, found, plain)


def divergence(
    target: Target, prompt: Sequence[int], ours: list[int], reference: list[int], at: int
) -> Divergence:
    """What the target itself says at the first difference, in one fresh pass over the common
    text."""
    a = ours[at] if at < len(ours) else -1
    b = reference[at] if at < len(reference) else -1
    common = torch.tensor([*prompt, *reference[:at]])
    state = target.begin(common.numel())
    output = target.prefill(state, common)
    logits = output.logits(torch.tensor([common.numel() - 1]))[0]
    best = float(logits.max())
    gap = max((best - float(logits[i]) for i in (a, b) if i >= 0), default=0.0)
    near = is_tie(gap, str(target.dtype).removeprefix("torch."))
    tie = a >= 0 and b >= 0 and near and not target.bit_exact
    return Divergence(at, a, b, gap, tie)
