"""``TransformersTarget`` on a model that transformers has split by its tensor-parallel plan.

Keys, values and the matrices of the layers are split by heads and columns, the embedding and the
head by tokens; features, norms and what a request is about are whole on every rank. At rank 0 this
is the target that the engine knows. On the others a request's states are known by number, and
``follow.py`` calls the same methods as rank 0 does, with the same arguments.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.output import HeadOutput
from dynaspec_cli.target.sharded.head import ShardedHead, slice_bounds
from dynaspec_cli.target.sharded.ranks import Ranks
from dynaspec_cli.target.transformers_target import TransformersState, TransformersTarget
from dynaspec_cli.weights.weight import dense


@dataclass
class ShardedState(TransformersState):
    """Request state with this rank's part of the cache; ``number``: what all ranks call it."""

    number: int = -1


class ShardedTarget(TransformersTarget):
    """``model``: this rank's part. ``known_hash``: of the whole head."""

    def __init__(self, model: Any, name: str, ranks: Ranks, known_hash: str | None) -> None:
        self.ranks = ranks
        self._numbers = itertools.count()
        self._freed: list[int] = []
        kernels = f"transformers (tensor parallel, {ranks.world} processes)"
        super().__init__(model, name, kernels, known_hash)
        table: Any = self.backbone.embedding.weight
        self._first_row, end = slice_bounds(table.shape[0], ranks.rank, ranks.world)
        self._embedding = _local(table, self._first_row, end)

    @contextmanager
    def told(self, operation: str, **arguments: Any) -> Iterator[None]:
        """A pass of all ranks: at rank 0 the others are told first; elsewhere nothing is added."""
        if self.ranks.rank:
            yield
            return
        with self.ranks.turn():
            freed, self._freed = self._freed, []
            self.ranks.send({"operation": operation, "freed": freed, **arguments})
            yield

    def _make_head(self, head: Any, transform: tuple[float, float | None]) -> Any:
        rows = int(head.weight.shape[0])
        begin, end = slice_bounds(rows, self.ranks.rank, self.ranks.world)
        parts = [None if t is None else _local(t, begin, end) for t in (head.weight, head.bias)]
        weight, bias = parts
        assert weight is not None
        return ShardedHead(LMHead(dense(weight), bias, *transform), rows, self.ranks, self.told)

    def _self_check(self) -> None:
        """Rank 0 makes the others take part."""
        if self.ranks.rank == 0:
            super()._self_check()

    def own_logits(self, text: Tensor) -> Tensor:
        with self.told("own_logits", tokens=text.tolist()):
            return super().own_logits(text)

    def embed(self, token_ids: Tensor) -> Tensor:
        with self.told("embed", tokens=token_ids.tolist()):
            return super().embed(token_ids)

    @torch.inference_mode()
    def embedding_rows(self, token_ids: Tensor) -> Tensor:
        local = self._embedding
        with self.told("embedding_rows", tokens=token_ids.tolist()):
            places = token_ids.to(local.device) - self._first_row
            here = (places >= 0) & (places < local.shape[0])
            found = local.new_zeros(places.numel(), local.shape[1])
            found[here] = local[places[here]]
            return self.ranks.sum(found)

    def begin(self, max_length: int, taps: tuple[int, ...] = ()) -> ShardedState:
        number = next(self._numbers)
        with self.told("begin", number=number, max_length=max_length, taps=list(taps)):
            state = ShardedState(**vars(super().begin(max_length, taps)), number=number)
        if self.ranks.rank == 0:
            weakref.finalize(state, self._forget, number)
        return state

    def _forget(self, number: int) -> None:
        """The other ranks drop a request's state with the next message."""
        self._freed.append(number)

    def prefill(self, state: Any, token_ids: Tensor) -> HeadOutput:
        with self.told("prefill", number=state.number, tokens=token_ids.tolist()):
            return super().prefill(state, token_ids)

    def verify(self, state: Any, tree: DraftTree, start: int = 0) -> HeadOutput:
        shape = {"tokens": tree.tokens.tolist(), "parents": tree.parents.tolist()}
        with self.told("verify", number=state.number, **shape, start=start):
            return super().verify(state, tree, start)

    def commit(self, state: Any, rows: Tensor) -> None:
        with self.told("commit", number=state.number, rows=rows.tolist()):
            super().commit(state, rows)

    def rewind(self, state: Any, length: int, max_length: int) -> None:
        with self.told("rewind", number=state.number, length=length, max_length=max_length):
            super().rewind(state, length, max_length)


def _local(tensor: Any, begin: int, end: int) -> Tensor:
    """Rows ``begin`` to ``end`` of a parameter: this rank's part of one that is split by rows, or a
    view of one that every rank has whole. Raises DynaSpecError where it is split otherwise."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor[begin:end]
    local = tensor.to_local()
    (placement,) = tensor.placements
    if isinstance(placement, Replicate):
        return local[begin:end]
    by_rows = isinstance(placement, Shard) and placement.dim % tensor.dim() == 0
    if not by_rows or local.shape[0] != end - begin:
        raise DynaSpecError(
            f"the model's tensor-parallel plan splits its head or embedding as {tensor.placements};"
            " expected a split by tokens"
        )
    return local
