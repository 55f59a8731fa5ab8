"""Prompts that the target continues, in batches of equal length (a batch needs no padding, so every
sequence is computed as it would be alone)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEW_TOKENS = 128
"""Tokens that the target adds to a prompt."""

TEMPERATURES = (0.0, 0.0, 0.0, 0.7, 1.0)
"""Of generated sequences, in turn: most decoding is greedy, but not all."""

EXACT_LENGTH = 96
"""Longer prompts lose up to a sixth of their end, so that enough of them are equally long."""

LEAST_ROWS = 12


@dataclass(frozen=True)
class PromptBatch:
    """tokens int64 [N, P]; ``groups`` int64 [N]: the corpus group of each. ``answers`` int64 [N,
    NEW_TOKENS], where they are written already."""

    tokens: Tensor
    groups: Tensor
    answers: Tensor | None = None


def prompt_batches(
    prompts: Sequence[Tensor], groups: Sequence[int], tokens: int, longest: int, seed: int
) -> list[PromptBatch]:
    """Batches of about ``tokens`` tokens (continuations included) in an order that ``seed`` fixes.
    ``longest``: tokens of a sequence at most; what exceeds it is cut from the prompt's end. A
    length that few prompts have makes a small batch; a few left over of a frequent one are left
    out."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(prompts):
        by_length[kept_length(min(ids.numel(), longest - NEW_TOKENS))].append(index)
    draw = random.Random(seed)
    batches = []
    for length in sorted(by_length):
        members = by_length[length]
        draw.shuffle(members)
        rows = max(LEAST_ROWS, tokens // (length + NEW_TOKENS))
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            if len(chosen) >= min(LEAST_ROWS, len(members)) and length > 0:
                batches.append(
                    PromptBatch(
                        torch.stack([prompts[i][:length] for i in chosen]).long(),
                        torch.tensor([groups[i] for i in chosen]),
                    )
                )
    draw.shuffle(batches)
    return batches


def growing(batches: Sequence[PromptBatch], first: int | None) -> list[PromptBatch]:
    """The same prompts in the same order; the first batch has about ``first`` tokens, continuations
    included, and each one after it twice as many, until they are whole (None: all are)."""
    found: list[PromptBatch] = []
    size = first
    for batch in batches:
        left = batch
        while size is not None and len(left.tokens):
            rows = max(1, size // (left.tokens.shape[1] + NEW_TOKENS))
            if rows >= len(left.tokens):
                size = None if left is batch else size
                break
            found.append(PromptBatch(left.tokens[:rows], left.groups[:rows]))
            left = PromptBatch(left.tokens[rows:], left.groups[rows:])
            size *= 2
        found.append(left)
    return found


def kept_length(count: int) -> int:
    if count <= EXACT_LENGTH:
        return count
    step = 16 if count < 256 else 64
    return EXACT_LENGTH + (count - EXACT_LENGTH) // step * step
