"""The drafter's LM head: rows of the target's head in the order that a shortlist wants to stream
them.

Rows that a policy selects together have neighbouring places: the frequent tokens first (a prefix is
a fixed shortlist), then cluster after cluster (a union of clusters is a few long ranges). A
selection is then a list of ranges of places. On the CPU a place is an index into the target's own
head, so that no second copy is held; elsewhere the rows are permuted once at load.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.weights.weight import Weight, dense

_CHUNK_ROWS = 16384  # rows permuted or quantised at a time: bounds the temporary copy


class DraftHead:
    """Head rows in shortlist order, R <= V.

    ``weight`` [R, d], or with ``gather`` the target's own head [V, d], of which row r of the
    shortlist is row ``row_ids[r]``; ``row_ids`` int32 [R] row -> token id, empty for the identity;
    ``rank`` int64 [V] token id -> row (-1: not in this head), None for the identity.
    """

    def __init__(
        self,
        weight: Weight,
        row_ids: Tensor,
        rank: Tensor | None,
        vocab_size: int,
        gather: bool = False,
    ) -> None:
        self.weight = weight
        self.row_ids = row_ids
        self.rank = rank
        self.vocab_size = vocab_size
        self.gather = gather

    @property
    def num_rows(self) -> int:
        return int(self.row_ids.shape[0]) if self.gather else self.weight.rows

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def num_bytes(self) -> int:
        """Bytes this head holds beside the target's own (0 when it shares the target's rows)."""
        shared = self.gather or (self.rank is None and not self.weight.scale.numel())
        return 0 if shared else self.weight.num_bytes

    def rows_of(self, token_ids: Tensor) -> Tensor:
        """Rows int64 of token ids int64 [m], on the head's device; -1 for a token without a row
        here."""
        token_ids = token_ids.to(self.device)
        return token_ids if self.rank is None else self.rank[token_ids]

    def topk(
        self, hidden: Tensor, blocks: Tensor, k: int, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``ops.shortlist_topk`` over this head: (log_q float32 [n, k'], ids int64 [n, k'],
        logsumexp float32 [n]) with k' = min(k, rows selected)."""
        try:
            return ops.shortlist_topk(
                hidden,
                self.weight.data,
                self.weight.scale,
                self.row_ids,
                blocks,
                k,
                temperature,
                self.weight.code,
                self.gather,
            )
        except ops.NotFiniteLogits as error:
            raise NotFiniteError.of_drafter() from error

    def log_probs(
        self, hidden: Tensor, blocks: Tensor, size: int, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``ops.shortlist_log_probs`` over this head, of ``size`` = S rows in ``blocks``: (log_q
        float32 [n, S], ids int64 [S], logsumexp float32 [n])."""
        try:
            return ops.shortlist_log_probs(
                hidden,
                self.weight.data,
                self.weight.scale,
                self.row_ids,
                blocks,
                temperature,
                size,
                self.weight.code,
                self.gather,
            )
        except ops.NotFiniteLogits as error:
            raise NotFiniteError.of_drafter() from error


def build_head(
    weight: Weight,
    order: Tensor | None = None,
    int8: bool = False,
    vocab: VocabMap | None = None,
) -> DraftHead:
    """A head in the given order.

    ``weight`` [H, d] is the drafter's head, ``vocab`` the token of each of its rows (None: row i is
    token i); ``order`` int64 [R] the token id of each row to be (distinct, each with a row in
    ``weight``; None: the order it has). On the CPU rows that are numbered by tokens are found by
    their index in ``weight``, elsewhere they are copied in order. ``int8`` makes symmetric 8-bit
    rows with one float32 scale a row, half the bytes of bf16; only the draft is affected, never the
    output.
    """
    if vocab is not None:
        return _mapped(weight, order, int8, vocab)
    device = weight.device
    empty_ids = torch.empty(0, dtype=torch.int32, device=device)
    if order is not None and _is_identity(order, weight.rows):
        order = None
    if order is None:
        return DraftHead(_quantised(weight, None) if int8 else weight, empty_ids, None, weight.rows)
    order = order.to(device=device, dtype=torch.int64)
    _check_order(order, weight.rows)
    rank = torch.full((weight.rows,), -1, dtype=torch.int64, device=device)
    rank[order] = torch.arange(order.numel(), device=device)
    gather = weight.device.type == "cpu" and not int8
    if int8:
        weight = _quantised(weight, order)
    elif not gather:
        weight = weight.take(order)
    return DraftHead(weight, order.to(torch.int32), rank, rank.numel(), gather)


def _mapped(weight: Weight, order: Tensor | None, int8: bool, vocab: VocabMap) -> DraftHead:
    """``build_head`` of a head whose rows are not all tokens in their order."""
    device, row_of = weight.device, vocab.rows()
    ids = vocab.ids if order is None else order.cpu().long()
    _check_order(ids, vocab.vocab_size)
    rows = row_of[ids]
    if int(rows.min()) < 0:
        missing = int(ids[rows < 0][0])
        raise DynaSpecError(f"shortlist order: the drafter's head has no row for token {missing}")
    if order is not None:
        weight = weight.take(rows.to(device))
    rank = torch.full((vocab.vocab_size,), -1, dtype=torch.int64)
    rank[ids] = torch.arange(ids.numel())
    return DraftHead(
        _quantised(weight, None) if int8 else weight,
        ids.to(device, torch.int32),
        rank.to(device),
        vocab.vocab_size,
    )


def _is_identity(order: Tensor, vocab_size: int) -> bool:
    return order.numel() == vocab_size and bool(
        torch.equal(order, torch.arange(vocab_size, dtype=order.dtype, device=order.device))
    )


def _check_order(order: Tensor, vocab_size: int) -> None:
    if order.numel() == 0:
        raise DynaSpecError("shortlist order: expected at least one token id, got none")
    low, high = int(order.min()), int(order.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise DynaSpecError(
            f"shortlist order: token id {bad} lies outside the target's vocabulary of {vocab_size}"
        )
    if int(torch.bincount(order, minlength=vocab_size).max()) > 1:
        raise DynaSpecError("shortlist order: expected distinct token ids, got duplicates")


def _quantised(weight: Weight, order: Tensor | None) -> Weight:
    total = int(weight.rows if order is None else order.numel())
    out = torch.empty((total, weight.columns), dtype=torch.int8, device=weight.device)
    scale = torch.empty(total, dtype=torch.float32, device=weight.device)
    for lo in range(0, total, _CHUNK_ROWS):
        hi = min(lo + _CHUNK_ROWS, total)
        part = torch.arange(lo, hi, device=weight.device) if order is None else order[lo:hi]
        rows = weight.embed(part)
        peak = rows.abs().amax(1).clamp_min(1e-12) / 127.0
        out[lo:hi] = torch.round(rows / peak[:, None]).to(torch.int8)
        scale[lo:hi] = peak
    return dense(out, scale)
