"""Examples for the router: sequences with the target's features, cut into positions.

At position t the router chooses the shortlist in which the token of t + 1 should be. An early
router reads the feature of t - 1 and the token of t, a late one the row that the LM head reads at
t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.training.shards import ShardMaker

CORE_FOR_TRAINING = 1024
DRAFT_STEPS = 3
DRAFTED_SEQUENCES = 32
"""Sequences of a shard that a drafter runs along, position by position."""
EXAMPLE_BYTES = 2 * 2**30
"""Host memory for a router's examples."""


@dataclass
class RouterExamples:
    """N positions. ``features`` [N, d] of t - 1 before the final norm; ``hidden`` [N, d] what the
    head reads at t; ``tokens`` int64 [N] at t; ``labels`` int64 [N] the target's token at t + 1;
    ``known`` bool [N]: the core or the text so far holds the label; ``embed``: token ids ->
    embeddings."""

    features: Tensor
    hidden: Tensor
    tokens: Tensor
    labels: Tensor
    known: Tensor
    embed: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return int(self.tokens.numel())


def sequence_examples(
    tokens: Tensor,
    before: Tensor,
    at_position: Tensor,
    next_tokens: Tensor,
    core: Tensor,
    norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fields of ``RouterExamples`` (but ``embed``) for one sequence's positions 1 .. T-1.

    tokens int64 [T]; ``before`` [T, d]: features that an early router reads (row t - 1 for position
    t); ``at_position`` [T, d]: features whose norm a late router and the head read; both are the
    target's, or what a drafter predicted for them. next_tokens int64 [T]: the token after each
    position (-1: unknown, left out); core bool [V].
    """
    at = torch.arange(1, tokens.numel())
    at = at[next_tokens[1:] >= 0]
    labels = next_tokens[at]
    known = core[labels] | _seen_before(tokens, at, labels)
    return before[at - 1], norm(at_position[at]), tokens[at], labels, known


def drafted_features(
    drafter: EagleDrafter, features: Tensor, tokens: Tensor, steps: int
) -> list[Tensor]:
    """What a drafter predicts along a text: ``steps`` tensors [T, d], of which row t of the s-th is
    the feature at t predicted in s + 1 draft steps from the target's feature at t - s - 1. The
    first rows keep the target's own.

    features [T, d] of the target, tokens int64 [T].
    """
    total = int(tokens.numel())
    found = [features.float().clone() for _ in range(steps)]
    state = drafter.begin(tokens[:1], total + steps + 1)
    for t in range(total - 1):
        predicted = drafter.read(state, features[t : t + 1], tokens[t + 1 : t + 2])
        found[0][t + 1] = predicted[0]
        parent = torch.tensor([-1])
        for s in range(1, min(steps, total - 1 - t)):
            at = t + 1 + s
            predicted = drafter.expand(state, predicted, tokens[at : at + 1], parent)
            found[s][at] = predicted[0]
            parent = parent + 1
    return found


def _seen_before(tokens: Tensor, at: Tensor, labels: Tensor) -> Tensor:
    """bool [n]: does ``labels[i]`` occur in ``tokens[: at[i] + 1]``."""
    first: dict[int, int] = {}
    for position, token in enumerate(tokens.tolist()):
        first.setdefault(token, position)
    never = int(tokens.numel())
    found = [first.get(t, never) <= p for t, p in zip(labels.tolist(), at.tolist(), strict=True)]
    return torch.tensor(found, dtype=torch.bool)


def concatenate(
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]], embed: Callable[[Tensor], Tensor]
) -> RouterExamples:
    """All examples in one; ``parts`` is emptied on the way, so that no column is held twice but the
    one in work."""
    lists = [list(column) for column in zip(*parts, strict=True)]
    parts.clear()
    columns = []
    for column in lists:
        columns.append(torch.cat(column))
        column.clear()
    features, hidden, tokens, labels, known = columns
    return RouterExamples(
        features.to(torch.bfloat16), hidden.to(torch.bfloat16), tokens, labels, known, embed
    )


def router_examples(
    target: Any, maker: ShardMaker, count: int, frequency: Tensor, drafter: EagleDrafter | None
) -> RouterExamples:
    """Positions of the first ``count`` shards, as many as ``EXAMPLE_BYTES`` hold; the label is the
    token that follows, which the target wrote or would have had to predict. With a drafter the
    inputs are those of draft positions 1 .. ``DRAFT_STEPS`` in turn."""
    core = torch.zeros(frequency.numel(), dtype=torch.bool)
    core[frequency[:CORE_FOR_TRAINING]] = True
    parts = []

    def norm(features: Tensor) -> Tensor:  # examples are kept, and learned from, on the host
        return target.norm(features).to(torch.bfloat16).cpu()

    positions = EXAMPLE_BYTES // (2 * 2 * target.hidden_size * count)  # of a shard: two bf16 rows

    def choose(rows: int, length: int) -> list[int]:
        most = max(1, positions // length)
        return list(range(min(rows, most if drafter is None else min(DRAFTED_SEQUENCES, most))))

    for index in range(count):
        shard = maker.get(index, choose)
        for row in range(len(shard.tokens)):
            tokens, features = shard.tokens[row], shard.features[row]
            following = torch.cat([tokens[1:], tokens.new_tensor([-1])])
            before, at_position = features, features
            if drafter is not None:
                step = row % DRAFT_STEPS
                drafted = drafted_features(drafter, features, tokens, step + 1)
                before, at_position = drafted[step - 1] if step else features, drafted[step]
            before = before.to(torch.bfloat16)
            parts.append(sequence_examples(tokens, before, at_position, following, core, norm))
    return concatenate(parts, lambda ids: target.embed(ids).cpu())
