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
from dynaspec_cli.engine.events import StepStats
from dynaspec_cli.errors import not_finite
from dynaspec_cli.protocols import (
    Drafter,
    DraftTree,
    Shortlist,
    ShortlistQuery,
    Target,
    TargetOutput,
    TreePolicy,
)
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import RandomSource
from dynaspec_cli.sampling.verify import verify


@dataclass(frozen=True)
class Speculation:
    """What drafts: the three independent choices. ``policy`` serves one request. ``temperature``:
    of the drafter's distribution."""

    drafter: Drafter
    shortlist: Shortlist
    policy: TreePolicy
    temperature: float = 1.0


@dataclass(frozen=True)
class Emission:
    """Tokens that one step settled (accepted path, then the bonus token). ``step`` is None for the
    prefill's token."""

    token_ids: list[int]
    step: StepStats | None


class Draft:
    """Drafting for one request: the drafter's, the shortlist's and the tree's state."""

    def __init__(
        self,
        parts: Speculation,
        target: Target,
        prompt: Tensor,
        prefill: TargetOutput,
        max_length: int,
    ) -> None:
        self.parts, self.target = parts, target
        self.drafter = parts.drafter.begin(max_length, int(prompt[0]))
        self.shortlist = parts.shortlist.begin(prompt, prefill)
        self.selections: list[Any] = []
        self.sizes: list[int] = []

    def grow(self, features: Tensor, tokens: Tensor, clock: PhaseClock) -> DraftTree:
        """Feed committed pairs (features [m, d], tokens int64 [m] that followed), then grow a tree
        under the last token."""
        drafter, shortlist, policy = self.parts.drafter, self.parts.shortlist, self.parts.policy
        self.selections, self.sizes = [], []
        tree = policy.begin(int(tokens[-1]))
        with clock("router"):
            selection = shortlist.select(
                self.shortlist, ShortlistQuery(1, features[-1:], tokens[-1:])
            )
        with clock("draft_body"):
            predicted = drafter.extend(self.drafter, features, tokens)
        depth = 1
        while True:
            with clock("head"):
                hidden = self.target.norm(predicted)
                scored = shortlist.score(
                    self.shortlist,
                    selection,
                    hidden,
                    policy.width,
                    policy.needs_distribution,
                    self.parts.temperature,
                )
            self.selections.append(selection)
            self.sizes.append(scored.size)
            with clock("tree"):
                frontier = policy.grow(tree, scored)
            if frontier is None:
                break
            depth += 1
            parents = predicted[frontier.source]
            with clock("router"):
                selection = shortlist.select(
                    self.shortlist, ShortlistQuery(depth, parents, frontier.tokens)
                )
            with clock("draft_body"):
                predicted = drafter.step(self.drafter, parents, frontier.tokens, frontier.parents)
        with clock("tree"):
            return policy.finish(tree)

    def covered(self, settled: Tensor) -> tuple[bool, ...]:
        """Was each settled token (accepted ones, then the bonus token) in the shortlist of its
        draft step?"""
        accepted = settled.numel() - 1
        hits = [True] * accepted  # an accepted token was proposed, so it was scored
        if accepted < len(self.selections):
            selection = self.selections[accepted]
            hits.append(
                bool(self.parts.shortlist.contains(self.shortlist, selection, settled[-1:])[0])
            )
        return tuple(hits)


def decode(
    target: Target,
    prompt: Tensor,
    max_length: int,
    sampling: SamplingConfig,
    source: RandomSource,
    speculation: Speculation | None,
    synchronize: bool = False,
) -> Iterator[Emission]:
    """Yield emissions without end (the caller stops): prompt int64 [m], at most ``max_length``
    tokens in all are valid."""
    state = target.begin(max_length)
    output = target.prefill(state, prompt)
    last = prompt.numel() - 1
    token = _first_token(output, last, sampling, source)
    clock = PhaseClock(target.device, synchronize)
    draft: Draft | None = None
    if speculation is not None:
        draft = Draft(speculation, target, prompt, output, max_length)
    features, tokens = output.features, torch.cat([prompt[1:], torch.tensor([token])])
    yield Emission([token], None)
    clock.lap()
    while True:
        tree = _root_only(token) if draft is None else draft.grow(features, tokens, clock)
        with clock("verify"):
            output = target.verify(state, tree)
            verdict = verify(tree, output, sampling, source)
        with clock("commit"):
            target.commit(state, verdict.path)
        token = verdict.bonus
        tokens = torch.cat([tree.tokens[verdict.path[1:]], torch.tensor([token])])
        covered = None
        if draft is not None:
            features = output.features[verdict.path]
            covered = draft.covered(tokens)
            with clock("router"):
                draft.parts.shortlist.observe(draft.shortlist, tree, output, verdict.path, tokens)
        yield Emission(
            tokens.tolist(),
            StepStats(
                drafted=tree.num_nodes,
                accepted=verdict.path.numel() - 1,
                depth=len(draft.sizes) if draft else 0,
                shortlist_sizes=tuple(draft.sizes) if draft else (),
                covered=covered,
                seconds=clock.lap(),
                drawn=getattr(tree.q, "drawn", 0),
                distinct=getattr(tree.q, "distinct", 0),
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
            raise not_finite("the target's logits")
        return best
    return source.categorical(probabilities(logits, sampling)[0])


def _root_only(token: int) -> DraftTree:
    return DraftTree(torch.tensor([token]), torch.tensor([-1]))
