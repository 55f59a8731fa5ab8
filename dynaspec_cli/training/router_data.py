"""Examples for the router: sequences with the target's features, cut into positions.

At position t the router chooses the shortlist in which the token of t + 1 should be. An early
router reads the feature of t - 1 and the token of t, a late one the row that the LM head reads at
t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.protocols import Drafter


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
    drafter: Drafter, features: Tensor, tokens: Tensor, steps: int
) -> list[Tensor]:
    """What a drafter predicts along a text: ``steps`` tensors [T, d], of which row t of the s-th is
    the feature at t predicted in s + 1 draft steps from the target's feature at t - s - 1. The
    first rows keep the target's own.

    features [T, d] of the target, tokens int64 [T].
    """
    total = int(tokens.numel())
    found = [features.float().clone() for _ in range(steps)]
    state = drafter.begin(total + steps + 1, int(tokens[0]))
    for t in range(total - 1):
        predicted = drafter.extend(state, features[t : t + 1], tokens[t + 1 : t + 2])
        found[0][t + 1] = predicted[0]
        parent = torch.tensor([-1])
        for s in range(1, min(steps, total - 1 - t)):
            at = t + 1 + s
            predicted = drafter.step(state, predicted, tokens[at : at + 1], parent)
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
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    features, hidden, tokens, labels, known = columns
    return RouterExamples(
        features.to(torch.bfloat16), hidden.to(torch.bfloat16), tokens, labels, known, embed
    )
