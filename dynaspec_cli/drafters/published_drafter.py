"""What EAGLE-1 and EAGLE-3 heads have in common: a cache over pairs, embeddings, a head, rotation.

A pass reads states (of the target, or predicted by the drafter itself) with tokens; what comes out
of the last layer is fed back at the next draft step, and is what the LM head reads once it is
normed as the method says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.bundle import BundleTarget
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.head import own_head, target_head
from dynaspec_cli.drafters.layer import run_layer
from dynaspec_cli.drafters.pairs import EXTEND_ROWS, PairCache, Rows, empty_caches
from dynaspec_cli.drafters.published import HeadConfig, read_head_config
from dynaspec_cli.drafters.published_weights import HeadWeights, read_weights
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import (
    Committed,
    DrafterHead,
    DraftRows,
    DraftTree,
    Frontier,
    KeptRows,
    Target,
    TargetOutput,
)
from dynaspec_cli.weights.weight import dense

COMPARED_ROWS = 8192
"""Embedding rows compared at a time."""


@dataclass
class PublishedState(PairCache):
    """Request state. ``fed`` float32 [w, D]: what the last pass's rows feed back."""

    fed: Tensor | None = None


class PublishedDrafter:
    """Base of ``Eagle1Drafter`` and ``Eagle3Drafter``, which say how rows are made and normed."""

    def __init__(
        self, config: HeadConfig, weights: HeadWeights, target: Target, where: str
    ) -> None:
        check_target(config, target, where)
        self.name, self.folder = where, None
        self.config, self.target = config, target
        self.notes = list(config.notes)
        self.options: dict[str, str] = {}
        device, dtype = target.device, target.dtype
        self.layers = [layer.placed(dtype, device) for layer in weights.layers]
        self.fc = weights.fc.to(device, dtype).contiguous()
        self.fc_bias = None if weights.fc_bias is None else weights.fc_bias.to(device).float()
        self.own_embedding = own_embedding(weights.embedding, target)
        if weights.embedding is None and config.hidden_size != target.hidden_size:
            raise DynaSpecError(
                f"{where}: the weights lack 'embed_tokens.weight', and the target's embeddings are "
                f"{target.hidden_size} wide, the head {config.hidden_size}"
            )
        self.rotary = config.rope.table(config.layer.head_dim)
        self.taps: tuple[int, ...] = ()
        self.head = self._choose_head(weights, where)

    name: str
    folder: Path | None

    def describe(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "drafter_kind": self.config.layout,
            "drafter_layers": len(self.layers),
            "drafter_rope": self.config.rope.parameters,
            "drafter_embeddings": "the target's" if self.own_embedding is None else "own",
        }
        said |= {"drafter_options": self.options} if self.options else {}
        return said | ({"drafter_notes": self.notes} if self.notes else {})

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that a draft step reads."""
        return sum(layer.num_bytes for layer in self.layers) + self.fc.nbytes

    def begin(self, prompt: Tensor, max_length: int) -> PublishedState:
        shape, target = self.config.layer, self.target
        sizes = (len(self.layers), max_length, shape.num_kv_heads, shape.head_dim)
        k, v = (empty_caches(*sizes, target.dtype, target.device) for _ in "kv")
        return PublishedState(k, v)

    @torch.inference_mode()
    def extend(self, state: PublishedState, committed: Committed) -> DraftRows:
        states = self.states(committed.output, committed.rows)
        rows = self.read(state, states, committed.tokens)
        return DraftRows(rows[-1:])

    @torch.inference_mode()
    def step(self, state: PublishedState, frontier: Frontier) -> DraftRows:
        assert state.fed is not None
        states = state.fed[frontier.source]
        hidden, state.fed = self._pass(
            state, states, frontier.tokens, state.begin_step(frontier.parents)
        )
        return DraftRows(hidden)

    def observe(self, state: PublishedState, tree: DraftTree, path: Tensor) -> None:
        """Nothing: what was accepted comes with the next ``extend``."""

    def rewind(self, state: PublishedState, prompt: Tensor, max_length: int) -> int:
        """Pair t holds tokens t and t + 1, so m tokens leave m - 1 pairs."""
        state.rewind(prompt.numel() - 1)
        return state.length + 1

    @torch.inference_mode()
    def read(self, state: PublishedState, states: Tensor, tokens: Tensor) -> Tensor:
        """Consume committed pairs: states float32 [m, D], tokens int64 [m]. What the head reads,
        [m, D], of every pair; the last one's state is fed back."""
        passed = []
        for some, ids in zip(states.split(EXTEND_ROWS), tokens.split(EXTEND_ROWS), strict=True):
            hidden, fed = self._pass(state, some, ids, state.begin_read(ids.numel()))
            state.end_read(ids.numel())
            state.fed = fed[-1:]
            passed.append(hidden)
        return torch.cat(passed)

    def states(self, output: TargetOutput | KeptRows, rows: Tensor) -> Tensor:
        """Float32 [m, D] of the target's rows: what pairs carry."""
        raise NotImplementedError

    def forward(
        self,
        states: Tensor,
        embedded: Tensor,
        layer: Callable[[int, Tensor, Tensor | None], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """(what the head reads, what is fed back), float32 [n, D], of rows with ``states`` and
        token embeddings float32 [n, D]. ``layer(i, x, read)``: decoder layer i."""
        raise NotImplementedError

    def _pass(
        self, state: PublishedState, states: Tensor, tokens: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        cos, sin = (t.to(self.target.device) for t in self.rotary.rows(rows.own.cpu()))

        def layer(i: int, x: Tensor, read: Tensor | None) -> Tensor:
            return run_layer(
                x, read, self.layers[i], state.k[i], state.v[i], cos, sin, rows, self.config.layer
            )

        return self.forward(states, self._embed(tokens), layer)

    def _embed(self, tokens: Tensor) -> Tensor:
        if self.own_embedding is None:
            return self.target.embedding_rows(tokens).float()
        return self.own_embedding[tokens.to(self.own_embedding.device)].float()

    def _choose_head(self, weights: HeadWeights, where: str) -> DrafterHead:
        config, target = self.config, self.target
        if weights.head is not None:
            if config.tie:
                self.notes.append(
                    "tie_word_embeddings: the file's lm_head is the head all the same, as EAGLE "
                    "takes it; SGLang takes the embeddings"
                )
            weight = weights.head.to(target.device, target.dtype).contiguous()
            return own_head(dense(weight), weights.vocab, target.vocab_size)
        if config.tie:
            everything = torch.arange(target.vocab_size)
            table = (
                target.embedding_rows(everything).to(target.dtype)
                if self.own_embedding is None
                else self.own_embedding
            )
            return own_head(dense(table), None, target.vocab_size)
        if config.hidden_size != target.hidden_size:
            raise DynaSpecError(
                f"{where}: the weights lack 'lm_head.weight', and the target's head is "
                f"{target.hidden_size} wide, the drafter {config.hidden_size}"
            )
        return target_head(target)

    @classmethod
    def load(cls, files: DrafterFiles, target: Target, generation: str) -> PublishedDrafter:
        """The head in ``files``, checked against ``target``; ``generation``: drafters/published.py.
        It has the name, the folder and the options that reports give."""
        where = f"drafter {files.folder}"
        config = read_head_config(files.config, files.options, generation, where)
        check_target(config, target, where)
        drafter = cls(config, read_weights(config, files.tensors(), where), target, where)
        drafter.name, drafter.folder, drafter.options = files.name, files.folder, files.options
        return drafter


def check_target(config: HeadConfig, target: BundleTarget, where: str) -> None:
    """Refuse a head made for another target, by what differs. Which model it was made for is not
    compared: the files name a hub repository, a path of the trainer's machine, or nothing."""
    for what, ours, theirs in (
        ("a target of hidden size", config.target_hidden_size, target.hidden_size),
        ("a vocabulary of", config.vocab_size, target.vocab_size),
    ):
        if ours != theirs:
            raise DynaSpecError(
                f"{where}: made for {what} {ours}, but {target.name} has {theirs}; it was made for "
                "another model"
            )


def own_embedding(table: Tensor | None, target: Target) -> Tensor | None:
    """The file's embeddings in the target's dtype; None where there are none, or they are the
    target's, which then serve both."""
    if table is None:
        return None
    table = table.to(target.dtype)
    if table.shape[1] == target.hidden_size:
        ids = torch.arange(table.shape[0])
        pairs = zip(table.split(COMPARED_ROWS), ids.split(COMPARED_ROWS), strict=True)
        if all(
            torch.equal(rows, target.embedding_rows(at).to("cpu", target.dtype))
            for rows, at in pairs
        ):
            return None
    return table.to(target.device).contiguous()
