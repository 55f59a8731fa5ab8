"""The decode loop: draft, verify, commit, emit.

Autoregressive decoding is the same loop with trees that consist of their root alone, so that both
arms of every comparison run the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.engine.clock import PhaseClock
from dynaspec_cli.engine.draft import Draft, Speculation, root_only
from dynaspec_cli.engine.events import StepStats
from dynaspec_cli.engine.prefix_cache import PrefixCache
from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.protocols import Committed, State, Target, TargetOutput
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import RandomSource
from dynaspec_cli.sampling.verify import pass_and_verify


@dataclass(frozen=True)
class Emission:
    """Tokens that one step settled (accepted path, then the bonus token). ``step`` is None for the
    prefill's token; where there is none either, a piece of the prompt was read."""

    token_ids: list[int]
    step: StepStats | None


def decode(
    target: Target[State],
    prompt: Tensor,
    max_length: int,
    sampling: SamplingConfig,
    source: RandomSource,
    speculation: Speculation | None,
    synchronize: bool = False,
    cache: PrefixCache[State, Any] | None = None,
) -> Iterator[Emission]:
    """Yield emissions without end (the caller stops): prompt int64 [m], at most ``max_length``
    tokens in all are valid. ``cache``: what an earlier request left, and a later one finds."""
    cache = PrefixCache(target) if cache is None else cache
    for _ in cache.read(prompt, max_length, speculation.drafter.taps if speculation else ()):
        yield Emission([], None)
    state, output = cache.state, cache.output
    last = prompt.numel() - 1
    token = _first_token(output, last, sampling, source)
    clock = PhaseClock(target.device, synchronize)
    draft: Draft | None = None
    if speculation is not None:
        draft = Draft(speculation, prompt, output, max_length, cache)
    committed = Committed(output, torch.tensor([last]), torch.tensor([token]))
    yield Emission([token], None)
    clock.lap()
    while True:
        drafted = root_only(token) if draft is None else draft.grow(committed, clock)
        with clock("verify"):
            tree, output, verdict = pass_and_verify(target, state, drafted, sampling, source)
        with clock("commit"):
            target.commit(state, verdict.path)
            cache.append(tree.tokens[verdict.path], output, verdict.path)
        token = verdict.bonus
        tokens = torch.cat([tree.tokens[verdict.path[1:]], torch.tensor([token])])
        committed = Committed(output, verdict.path, tokens)
        covered = None
        if draft is not None:
            with clock("router"):
                covered = draft.observe(tree, output, verdict.path, tokens)
        yield Emission(
            tokens.tolist(),
            StepStats(
                drafted=tree.num_nodes,
                accepted=verdict.path.numel() - 1,
                depth=draft.depth if draft else 0,
                shortlist_sizes=tuple(draft.sizes) if draft else (),
                covered=covered,
                seconds=clock.lap(),
                drawn=tree.q.drawn if tree.q else 0,
                distinct=tree.q.distinct if tree.q else 0,
            ),
        )


def _first_token(
    output: TargetOutput, last: int, sampling: SamplingConfig, source: RandomSource
) -> int:
    """The token after the prompt: verification of a tree without nodes."""
    row = torch.tensor([last])
    logits = output.logits(row)
    if sampling.greedy:
        best = int(logits[0].argmax())  # NaN ranks highest
        if not math.isfinite(float(logits[0, best])):
            raise NotFiniteError.of_target()
        return best
    return source.categorical(probabilities(logits, sampling)[0])
