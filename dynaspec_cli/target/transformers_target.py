"""``protocols.Target`` on any causal language model of ``transformers``, on CPU or CUDA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops import tree_mask
from dynaspec_cli.protocols import DraftTree, KeptRows
from dynaspec_cli.target.backbone import Backbone
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.kv_cache import PreallocatedCache
from dynaspec_cli.target.layer_masks import attention_masks, layer_kinds
from dynaspec_cli.target.output import HeadOutput
from dynaspec_cli.target.state import (
    TREE_ROWS,
    TargetState,
    causal_rows,
    check_append,
    check_max_length,
    check_rewind,
    check_rows,
    check_start,
    check_taps,
)
from dynaspec_cli.weights.weight import Weight, dense

PREFILL_ROWS = 512
"""Prompt tokens a pass; bounds the [rows, context] masks and the activations."""


@dataclass
class TransformersState(TargetState):
    """Request state with the cache that ``transformers`` writes to."""

    cache: PreallocatedCache = field(default_factory=lambda: PreallocatedCache(0, 0))


class TransformersTarget:
    """Wraps a loaded ``transformers`` model; ``kernels`` says in reports why this path runs.

    Features are the input of the model's final norm [n, d] in the model's dtype; logits are
    float32.
    """

    def __init__(
        self, model: Any, name: str, kernels: str = "transformers", known_hash: str | None = None
    ) -> None:
        self._hash = known_hash
        self.model = model.eval()
        self.name = name
        self.kernels = kernels
        config = model.config.get_text_config()
        self._kinds = layer_kinds(config, name)
        self.num_layers = int(config.num_hidden_layers)
        self.backbone = Backbone.of(model, name)
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise DynaSpecError(
                f"{name} has no linear LM head, so it is no causal language model; choose another "
                "--model"
            )
        self.dtype = head.weight.dtype
        self.device = head.weight.device
        table: Any = self.backbone.embedding.weight
        self._first: torch.device = table.device  # another, where layers lie on several
        self.hidden_size = int(config.hidden_size)
        self.vocab_size = int(head.weight.shape[0])
        context = getattr(config, "max_position_embeddings", None)
        if context is None:
            raise DynaSpecError(
                f"{self._unsupported()} (it has no position limit, as ALiBi models)"
            )
        self.max_context = int(min(context, _one_rotation(config)))
        implementation = getattr(config, "_attn_implementation", "eager")
        self._additive = None if implementation == "sdpa" else self.dtype
        self._head = self._make_head(head, _logit_transform(config))
        self._self_check()

    def _make_head(self, head: Any, transform: tuple[float, float | None]) -> Any:
        """From the model's head and its ``(multiplier, softcap)``."""
        bias = None if head.bias is None else head.bias.detach()
        return LMHead(dense(head.weight.detach()), bias, *transform)

    def own_logits(self, text: Tensor) -> Tensor:
        """The model's, float32 [n, V], of int64 [1, n]."""
        logits: Tensor = self.model(input_ids=text, use_cache=False).logits[0].float()
        return logits

    @torch.inference_mode()
    def _self_check(self) -> None:
        """A tree of two siblings must give the model's own logits: families cap logits, place
        positions and mask in ways of their own, and one that this class does not know must not run
        with wrong numbers."""
        ids = [i % self.vocab_size for i in (3, 5, 7, 11, 13)]
        text = torch.tensor([ids[:3] + ids[4:]], device=self.device)
        try:
            own = self.own_logits(text)
            state = self.begin(4)
            first = self.prefill(state, text[0, :2]).logits()
            tree = DraftTree(torch.tensor(ids[2:]), torch.tensor([-1, 0, 0]))
            ours = torch.cat([first, self.verify(state, tree).logits()[[0, 2]]])
            error = float((own - ours).norm() / own.norm())
        except Exception as problem:
            lines = str(problem).strip().splitlines() or [type(problem).__name__]
            raise DynaSpecError(f"{self._unsupported()} ({lines[0]})") from problem
        if not error < (1e-3 if self.dtype == torch.float32 else 0.2):
            raise DynaSpecError(f"{self._unsupported()} (its logits differ by {error:.2g})")

    @property
    def bit_exact(self) -> bool:
        """Not promised: libraries choose the order of a sum by the number of rows."""
        return False

    def _unsupported(self) -> str:
        kind = self.model.config.model_type
        return f"{self.name}: models of type {kind!r} cannot verify a draft tree here"

    @property
    def head(self) -> Any:
        return self._head

    def head_weight(self) -> Weight:
        weight: Weight = self._head.weight
        return weight

    def head_hash(self) -> str:
        if self._hash is None:
            self._hash = head_hash(self._head.weight.data)
        return self._hash

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        return self.backbone.embedding(token_ids.to(self._first)).to(self.device)

    @torch.inference_mode()
    def embedding_rows(self, token_ids: Tensor) -> Tensor:
        table: Any = self.backbone.embedding.weight
        rows: Tensor = table[token_ids.to(self._first)]
        return rows.to(self.device)

    @torch.inference_mode()
    def norm(self, features: Tensor) -> Tensor:
        return self.backbone.norm(features.to(self.device, self.dtype)).to(self.device)

    def begin(self, max_length: int, taps: tuple[int, ...] = ()) -> TransformersState:
        check_max_length(max_length, self.max_context, self.name)
        check_taps(taps, self.num_layers, self.name)
        if taps:
            _ = self.backbone.layers
        return TransformersState(
            max_length, taps, cache=PreallocatedCache(self.num_layers, max_length + TREE_ROWS)
        )

    @torch.inference_mode()
    def prefill(self, state: TransformersState, token_ids: Tensor) -> HeadOutput:
        check_append(state, token_ids, self.vocab_size)
        state.cache.ahead(0)
        outputs = []
        for piece in token_ids.to(self._first).split(PREFILL_ROWS):
            mask, positions = causal_rows(state.length, piece.numel(), self._first)
            outputs.append(self._forward(state, piece, mask, positions))
            state.cache.append(piece.numel())
            state.length += piece.numel()
        state.pending = 0
        features, hidden, taps = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return HeadOutput(features, hidden, self._head, taps if state.taps else None)

    @torch.inference_mode()
    def verify(self, state: TransformersState, tree: DraftTree, start: int = 0) -> HeadOutput:
        check_start(state, tree, start)
        mask, depth = tree_mask(tree.parents.cpu())
        state.cache.ahead(start)
        state.pending = tree.tokens.numel()
        features, hidden, taps = self._forward(
            state,
            tree.tokens[start:].to(self._first),
            mask[start:].to(self._first),
            # Nodes beyond the context's end are never accepted, but a position there would change
            # the rotation of the whole pass (dynamic scaling) or miss the table (learned ones).
            (depth + state.length).clamp(max=self.max_context - 1).to(self._first),
        )
        return HeadOutput(features, hidden, self._head, taps if state.taps else None)

    @torch.inference_mode()
    def commit(self, state: TransformersState, rows: Tensor) -> None:
        check_rows(state, rows)
        state.cache.keep(rows, self.device)
        state.length += rows.numel()
        state.pending = 0

    def rewind(self, state: TransformersState, length: int, max_length: int) -> None:
        check_max_length(max_length, self.max_context, self.name)
        check_rewind(state, length)
        state.cache.rewind(length)
        state.length, state.pending, state.max_length = length, 0, max_length

    @torch.inference_mode()
    def recall(self, kept: Sequence[KeptRows]) -> HeadOutput:
        rows = KeptRows.joined(kept)
        return HeadOutput(
            rows.features, self.norm(rows.features), self._head, rows.taps, rows.leaders
        )

    def _forward(
        self, state: TransformersState, tokens: Tensor, mask: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(features [n, d], normed [n, d], taps [n, A * d]) of one pass over ``tokens`` int64 [n].
        ``positions`` int64 [t] and ``mask`` bool [n, t]: of all rows behind the committed ones, of
        which these are the last; keys and values lie there."""
        masks = attention_masks(self._kinds, mask, positions, state.length, self._additive)
        own = positions[None, -tokens.numel() :]
        features, normed, taps = self.backbone.run(
            tokens[None], own, masks, state.cache, state.taps
        )
        features, normed = features[0].to(self.device), normed[0].to(self.device)
        streams = [tap[0].to(self.device) for tap in taps]
        return features, normed, torch.cat(streams, -1) if streams else features[:, :0]


def _logit_transform(config: Any) -> tuple[float, float | None]:
    """(multiplier, softcap) that a family applies to its LM head's output: Granite divides, Cohere
    multiplies, Gemma 2 caps."""
    multiplier = 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)
    multiplier *= float(getattr(config, "logit_scale", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return multiplier, None if softcap is None else float(softcap)


def _one_rotation(config: Any) -> float:
    """Tokens up to which every pass rotates positions alike. "longrope" picks its frequencies by
    the longest position of a pass, so keys that a shorter pass cached would not fit beyond its
    original context; transformers itself computes such a text anew there."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [entry for entry in parameters.values() if isinstance(entry, dict)]
    for entry in nested or [parameters]:
        if entry.get("rope_type") == "longrope":
            own = getattr(config, "original_max_position_embeddings", None)
            return float(entry.get("original_max_position_embeddings") or own or math.inf)
    return math.inf
