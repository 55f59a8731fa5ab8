"""The drafter's LM head: rows of the target's head in the order that a shortlist wants to stream
them.

Rows that a policy selects together have neighbouring places: the frequent tokens first (a prefix is
a fixed shortlist), then cluster after cluster (a union of clusters is a few long ranges). A
selection is then a list of ranges of places. On the CPU a place is an index into the target's own
head, so that no second copy is held; elsewhere the rows are permuted once at load.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.weights.weight import Weight, WeightFormat, joined

_CHUNK_ROWS = 16384  # rows brought into another form at a time: bounds the temporary copy


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

    def rows_of(self, token_ids: Tensor) -> Tensor:
        """Rows int64 of token ids int64 [m], where the ids lie; -1 for a token without a row here.
        Ids on the host are looked up there, without a wait for the head's device."""
        if self.rank is None:
            return token_ids
        if token_ids.device.type == "cpu":
            return self.host_rank[token_ids]
        return self.rank[token_ids.to(self.device)]

    @cached_property
    def host_rank(self) -> Tensor:
        """``rank`` on the host."""
        assert self.rank is not None
        return self.rank.cpu()

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


class PlainHead(DraftHead):
    """A head whose form no op knows: its rows are read and PyTorch multiplies them."""

    def topk(
        self, hidden: Tensor, blocks: Tensor, k: int, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_q, ids, lse = self.log_probs(hidden, blocks, 0, temperature)
        order = torch.sort(log_q, dim=-1, descending=True, stable=True).indices[:, :k]
        return log_q.gather(1, order), ids[order], lse

    def log_probs(
        self, hidden: Tensor, blocks: Tensor, size: int, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ranges = [torch.arange(lo, hi) for lo, hi in blocks.tolist()]
        rows = torch.cat(ranges).to(self.device)
        logits = self.weight.take(rows).linear(hidden) / temperature
        lse = torch.logsumexp(logits, -1)
        if not bool(lse.isfinite().all()):
            raise NotFiniteError.of_drafter()
        ids = self.row_ids[rows].long() if self.row_ids.numel() else rows
        return logits - lse[:, None], ids, lse


def build_head(
    weight: Weight,
    order: Tensor | None = None,
    form: WeightFormat | None = None,
    vocab: VocabMap | None = None,
) -> DraftHead:
    """A head in the given order.

    ``weight`` [H, d] is the drafter's head, ``vocab`` the token of each of its rows (None: row i is
    token i); ``order`` int64 [R] the token id of each row to be (distinct, each with a row in
    ``weight``; None: the order it has). On the CPU rows that are numbered by tokens are found by
    their index in ``weight``, elsewhere they are copied in order. ``form``: keep a copy of the rows
    in it; only the draft is affected, never the output.
    """
    if vocab is not None:
        return _mapped(weight, order, form, vocab)
    device = weight.device
    empty_ids = torch.empty(0, dtype=torch.int32, device=device)
    if order is not None and _is_identity(order, weight.rows):
        order = None
    if order is None:
        return _head(_kept(weight, form), empty_ids, None, weight.rows)
    order = order.to(device=device, dtype=torch.int64)
    _check_order(order, weight.rows)
    rank = torch.full((weight.rows,), -1, dtype=torch.int64, device=device)
    rank[order] = torch.arange(order.numel(), device=device)
    gather = weight.device.type == "cpu" and form is None
    rows = weight if gather else _kept(weight, form, order)
    return _head(rows, order.to(torch.int32), rank, rank.numel(), gather)


def _mapped(
    weight: Weight, order: Tensor | None, form: WeightFormat | None, vocab: VocabMap
) -> DraftHead:
    """``build_head`` of a head whose rows are not all tokens in their order."""
    device, row_of = weight.device, vocab.rows()
    ids = vocab.ids if order is None else order.cpu().long()
    _check_order(ids, vocab.vocab_size)
    rows = row_of[ids]
    if int(rows.min()) < 0:
        missing = int(ids[rows < 0][0])
        raise DynaSpecError(f"shortlist order: the drafter's head has no row for token {missing}")
    weight = _kept(weight, form, None if order is None else rows.to(device))
    rank = torch.full((vocab.vocab_size,), -1, dtype=torch.int64)
    rank[ids] = torch.arange(ids.numel())
    return _head(weight, ids.to(device, torch.int32), rank.to(device), vocab.vocab_size)


def _head(
    weight: Weight,
    row_ids: Tensor,
    rank: Tensor | None,
    vocab_size: int,
    gather: bool = False,
) -> DraftHead:
    if weight.plain is None:
        return DraftHead(weight, row_ids, rank, vocab_size, gather)
    # A drafter's own weight may be of such a form without a copy; it is never gathered from.
    rows = weight.take(row_ids.long()) if gather else weight
    return PlainHead(rows, row_ids, rank, vocab_size)


def _kept(weight: Weight, form: WeightFormat | None, order: Tensor | None = None) -> Weight:
    """The rows of ``order`` (None: all), in another ``form`` where one is given."""
    if form is None:
        return weight if order is None else weight.take(order)
    rows = torch.arange(weight.rows, device=weight.device) if order is None else order
    return joined([form.store(weight.embed(part)) for part in rows.split(_CHUNK_ROWS)])


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
