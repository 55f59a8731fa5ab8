"""What both targets share of a request's state: lengths, limits and the checks of their
arguments."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree

TREE_ROWS = 64
"""Cache rows kept free for a tree; a larger tree makes the cache grow once."""


@dataclass
class TargetState:
    """``length``: committed tokens. ``max_length``: the tokens this request may commit.
    ``pending``: rows of the last verified tree, 0 when nothing waits for a commit. ``taps``: see
    ``protocols.Target.begin``."""

    max_length: int
    taps: tuple[int, ...] = ()
    length: int = 0
    pending: int = 0


def check_max_length(max_length: int, max_context: int, name: str) -> None:
    """Refuse a request that does not fit the model's context."""
    if max_length < 1:
        raise DynaSpecError(f"{name}: expected room for at least 1 token, got {max_length}")
    if max_length > max_context:
        raise DynaSpecError(
            f"{name}: {max_length} tokens do not fit the model's context of {max_context}; "
            "shorten the prompt or lower --max-new-tokens"
        )


def check_taps(taps: tuple[int, ...], num_layers: int, name: str) -> None:
    """Refuse residual streams that the target does not have."""
    for tap in taps:
        if not 0 <= tap <= num_layers:
            raise DynaSpecError(
                f"the drafter reads the hidden state that enters layer {tap}, but {name} has "
                f"{num_layers} layers; it was made for another target"
            )


def check_append(state: TargetState, token_ids: Tensor, vocab_size: int) -> None:
    """Refuse tokens that are no tokens of the model or that exceed the request's length."""
    if token_ids.numel() == 0:
        raise DynaSpecError("The prompt is empty: give at least one token of text")
    if state.length + token_ids.numel() > state.max_length:
        raise DynaSpecError(
            f"{state.length + token_ids.numel()} tokens exceed the {state.max_length} this "
            "request was begun for"
        )
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= vocab_size:
        raise DynaSpecError(
            f"Token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}"
        )


def check_rows(state: TargetState, rows: Tensor) -> None:
    """Refuse a commit that is no root-first, ascending choice of rows of the last verified tree."""
    ids = rows.tolist()
    if not ids or ids[0] != 0 or any(b <= a for a, b in pairwise(ids)) or ids[-1] >= state.pending:
        raise DynaSpecError(
            f"commit: expected ascending rows of the last verified tree ({state.pending} rows), "
            f"root first, got {ids}"
        )


def check_start(state: TargetState, tree: DraftTree, start: int) -> None:
    """Refuse a tree that does not go on from the rows verified last."""
    if start and not 0 < start == state.pending < tree.tokens.numel():
        raise DynaSpecError(
            f"verify: expected a tree that goes on from row {state.pending}, got {start} of "
            f"{tree.tokens.numel()} rows"
        )


def check_rewind(state: TargetState, length: int) -> None:
    """Refuse to keep more tokens than are committed."""
    if not 0 <= length <= state.length:
        raise DynaSpecError(f"rewind: expected 0 to {state.length} tokens to keep, got {length}")


def causal_rows(start: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mask bool [n, n], positions int64 [n]) of ``count`` consecutive tokens from position
    ``start``."""
    mask = torch.ones(count, count, dtype=torch.bool, device=device).tril_()
    return mask, torch.arange(start, start + count, device=device)


def grown(cache: Tensor, axis: int, used: int, rows: int) -> Tensor:
    """A copy of ``cache`` with ``rows`` rows along ``axis``, of which the first ``used`` are
    kept."""
    shape = list(cache.shape)
    shape[axis] = rows
    bigger = cache.new_empty(shape)
    bigger.narrow(axis, 0, used).copy_(cache.narrow(axis, 0, used))
    return bigger
