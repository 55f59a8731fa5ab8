"""A target: the next token depends on the last one alone.

A folder of it holds a tokenizer, ``config.json`` with ``{"model_type": "bigram"}``, and
``model.safetensors`` with "embedding" [V, d] and "head" [V, d]. Without attention there is no cache
to keep, which leaves what every target owes: a request's state, features, logits on demand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.protocols import DraftTree, KeptRows
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.kind import TargetRequest
from dynaspec_cli.target.output import HeadOutput
from dynaspec_cli.target.state import (
    TargetState,
    check_append,
    check_max_length,
    check_rewind,
    check_rows,
    check_start,
    check_taps,
)
from dynaspec_cli.weights.weight import Weight, dense


class Bigram:
    """Features are the embeddings, and the final norm is none."""

    num_layers = 0
    max_context = 1 << 16
    dtype = torch.float32
    device = torch.device("cpu")
    kernels = "bigram"

    def __init__(self, name: str, embedding: Tensor, head: Tensor) -> None:
        self.name = name
        self.vocab_size, self.hidden_size = head.shape
        self._embedding = embedding
        self._head = LMHead(dense(head))

    @property
    def bit_exact(self) -> bool:
        return self._head.weight.compiled

    def head_weight(self) -> Weight:
        return self._head.weight

    def head_hash(self) -> str:
        return head_hash(self._head.weight.data)

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._embedding[token_ids]

    def embedding_rows(self, token_ids: Tensor) -> Tensor:
        return self._embedding[token_ids]

    def norm(self, features: Tensor) -> Tensor:
        return features

    def begin(self, max_length: int, taps: tuple[int, ...] = ()) -> TargetState:
        check_max_length(max_length, self.max_context, self.name)
        check_taps(taps, self.num_layers, self.name)
        return TargetState(max_length, taps)

    def prefill(self, state: TargetState, token_ids: Tensor) -> HeadOutput:
        check_append(state, token_ids, self.vocab_size)
        state.length += token_ids.numel()
        state.pending = 0
        return self._output(state, token_ids)

    def verify(self, state: TargetState, tree: DraftTree, start: int = 0) -> HeadOutput:
        """A node's row needs no mask here: it reads its own token."""
        check_start(state, tree, start)
        state.pending = tree.tokens.numel()
        return self._output(state, tree.tokens[start:])

    def commit(self, state: TargetState, rows: Tensor) -> None:
        check_rows(state, rows)
        state.length += rows.numel()
        state.pending = 0

    def rewind(self, state: TargetState, length: int, max_length: int) -> None:
        check_max_length(max_length, self.max_context, self.name)
        check_rewind(state, length)
        state.length, state.pending, state.max_length = length, 0, max_length

    def recall(self, kept: Sequence[KeptRows]) -> HeadOutput:
        rows = KeptRows.joined(kept)
        return HeadOutput(rows.features, rows.features, self._head, rows.taps, rows.leaders)

    def _output(self, state: TargetState, tokens: Tensor) -> HeadOutput:
        features = self._embedding[tokens]
        taps = torch.cat([features] * len(state.taps), 1) if state.taps else None
        return HeadOutput(features, features, self._head, taps)


def create(request: TargetRequest) -> Bigram | str:
    """What the entry point names: the target, or why the folder is none of it."""
    config = json.loads((request.folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bigram":
        return "no bigram model"
    weights = load_file(request.folder / "model.safetensors")
    return Bigram(request.name, weights["embedding"].float(), weights["head"].float())
