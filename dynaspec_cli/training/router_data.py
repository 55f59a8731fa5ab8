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
    features: Tensor,
    next_tokens: Tensor,
    core: Tensor,
    norm: Callable[[Tensor], Tensor],
    drafted: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fields of ``RouterExamples`` (but ``embed``) for one sequence's positions 1 .. T-1.

    tokens int64 [T]; features [T, d] before the final norm; next_tokens int64 [T]: the target's
    token after each position (-1: unknown, left out); core bool [V]; ``drafted`` [T, d]: a
    drafter's predictions of the features, which replace the target's own as inputs (position 0 has
    none, and keeps the target's).
    """
    inputs = features if drafted is None else drafted
    at = torch.arange(1, tokens.numel())
    at = at[next_tokens[1:] >= 0]
    labels = next_tokens[at]
    known = core[labels] | _seen_before(tokens, at, labels)
    return inputs[at - 1], norm(inputs[at]), tokens[at], labels, known


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
