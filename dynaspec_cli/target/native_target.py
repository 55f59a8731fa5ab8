"""``protocols.Target`` on this project's own decoder layers: the fast path on CPU.

The residual stream is float32; matrices and the KV cache have the model's dtype (float16 models
keep a float32 cache). A row is computed alike in a tree and in plain decoding, so that speculation
emits what plain decoding would, in bf16 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.fingerprint import head_hash_of_rows, sampled_rows
from dynaspec_cli.ops import backend, decoder_layer, kv_commit, rms_norm, tree_mask
from dynaspec_cli.ops.extension import compiled
from dynaspec_cli.protocols import DraftTree, KeptRows
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.native_spec import NativeSpec
from dynaspec_cli.target.native_weights import NativeWeights, Tensors, read_weights
from dynaspec_cli.target.output import HeadOutput
from dynaspec_cli.target.packed_weights import BlockTensors, read_packed
from dynaspec_cli.target.rope import rotary_tables
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
    grown,
)
from dynaspec_cli.weights.weight import Weight

PREFILL_ROWS = 128
"""Prompt tokens a pass."""


@dataclass
class NativeState(TargetState):
    """Request state: ``keys`` and ``values``, a tensor [rows, kv_heads, head_dim] a layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class NativeTarget:
    """Gemma 2 and 3 (text), Llama, Mistral, Qwen 2 and 3 on CPU. Features are float32 [n, d]."""

    device = torch.device("cpu")

    def __init__(
        self,
        name: str,
        spec: NativeSpec,
        weights: NativeWeights,
        dtype: torch.dtype,
        kernels: str = "native",
        known_hash: str | None = None,
    ) -> None:
        self.name = name
        self.kernels = kernels
        self.form = weights.form
        self.dtype = dtype
        self.hidden_size, self.vocab_size, self.max_context = (
            spec.hidden_size,
            spec.vocab_size,
            spec.max_context,
        )
        self.num_layers = len(spec.shapes)
        self._spec = spec
        self._weights = weights
        self._tables = rotary_tables(spec)
        self._cache_dtype = torch.float32 if self.dtype == torch.float16 else self.dtype
        self._head = LMHead(weights.head, softcap=spec.softcap)
        self._hash = known_hash

    @property
    def bit_exact(self) -> bool:
        return compiled(self._head.weight.data)

    @property
    def head(self) -> LMHead:
        return self._head

    def head_weight(self) -> Weight:
        return self._head.weight

    def head_hash(self) -> str:
        if self._hash is None:
            weight = self._head.weight
            sample = weight.take(sampled_rows(weight.rows)).float()
            self._hash = head_hash_of_rows((weight.rows, weight.columns), sample)
        return self._hash

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Float32 [n, d]."""
        return self._weights.embedding.embed(token_ids, self._spec.embed_scale)

    @torch.inference_mode()
    def embedding_rows(self, token_ids: Tensor) -> Tensor:
        """Float32 [n, d]."""
        return self._weights.embedding.embed(token_ids)

    @torch.inference_mode()
    def norm(self, features: Tensor) -> Tensor:
        """Float32 [n, d]."""
        return rms_norm(features, self._weights.norm, self._spec.eps)

    def begin(self, max_length: int, taps: tuple[int, ...] = ()) -> NativeState:
        check_max_length(max_length, self.max_context, self.name)
        check_taps(taps, self.num_layers, self.name)
        state = NativeState(max_length, taps)
        for shape in self._spec.shapes:
            size = (max_length + TREE_ROWS, shape.num_kv_heads, shape.head_dim)
            state.keys.append(torch.empty(size, dtype=self._cache_dtype))
            state.values.append(torch.empty(size, dtype=self._cache_dtype))
        return state

    @torch.inference_mode()
    def prefill(self, state: NativeState, token_ids: Tensor) -> HeadOutput:
        check_append(state, token_ids, self.vocab_size)
        passes = []
        for piece in token_ids.split(PREFILL_ROWS):
            mask, positions = causal_rows(state.length, piece.numel(), self.device)
            passes.append(self._forward(state, piece, mask, positions))
            state.length += piece.numel()
        state.pending = 0
        return self._output(state, torch.cat(passes))

    @torch.inference_mode()
    def verify(self, state: NativeState, tree: DraftTree, start: int = 0) -> HeadOutput:
        check_start(state, tree, start)
        mask, depth = tree_mask(tree.parents)
        x = self._forward(state, tree.tokens[start:], mask[start:], depth + state.length)
        state.pending = tree.tokens.numel()
        return self._output(state, x)

    @torch.inference_mode()
    def commit(self, state: NativeState, rows: Tensor) -> None:
        check_rows(state, rows)
        if int(rows[-1]) != rows.numel() - 1:  # else the rows already lie where they belong
            base = torch.tensor([state.length])
            kv_commit([*state.keys, *state.values], base, rows)
        state.length += rows.numel()
        state.pending = 0

    def rewind(self, state: NativeState, length: int, max_length: int) -> None:
        check_max_length(max_length, self.max_context, self.name)
        check_rewind(state, length)
        state.length, state.pending, state.max_length = length, 0, max_length

    @torch.inference_mode()
    def recall(self, kept: Sequence[KeptRows]) -> HeadOutput:
        rows = KeptRows.joined(kept)
        hidden = rms_norm(rows.features, self._weights.norm, self._spec.eps)
        return HeadOutput(rows.features, hidden, self._head, rows.taps, rows.leaders)

    def _output(self, state: NativeState, passed: Tensor) -> HeadOutput:
        """From what ``_forward`` yields: taps, then features, side by side."""
        d = self.hidden_size
        features = passed if not state.taps else passed[:, -d:].contiguous()
        taps = passed[:, :-d] if state.taps else None
        hidden = rms_norm(features, self._weights.norm, self._spec.eps)
        return HeadOutput(features, hidden, self._head, taps)

    def _forward(
        self, state: NativeState, tokens: Tensor, mask: Tensor, positions: Tensor
    ) -> Tensor:
        """Residual streams float32 [n, (A + 1) * d] of ``tokens`` int64 [n]: those of
        ``state.taps``, then the one after the last layer. ``positions`` int64 [t] and ``mask`` bool
        [n, t]: of all rows behind the committed ones, of which these are the last; keys and values
        go there."""
        self._make_room(state, positions.numel())
        x = self.embed(tokens)
        streams = {0: x}
        own = positions[-tokens.numel() :]
        turns = {name: table.rows(own) for name, table in self._tables.items()}
        layers = zip(
            self._spec.shapes,
            self._spec.rope,
            self._weights.layers,
            state.keys,
            state.values,
            strict=True,
        )
        for above, (shape, rope, weights, keys, values) in enumerate(layers, 1):
            cos, sin = turns[rope]
            x = decoder_layer(
                x, weights, keys, values, cos, sin, positions, mask, state.length, *shape
            )
            if above in state.taps:
                streams[above] = x
        return torch.cat([*(streams[tap] for tap in state.taps), x], 1) if state.taps else x

    def _make_room(self, state: NativeState, rows: int) -> None:
        have, needed = state.keys[0].shape[0], state.length + rows
        if needed > have:
            size = max(needed, have + have // 4)
            kept = state.length + state.pending
            state.keys = [grown(cache, 0, kept, size) for cache in state.keys]
            state.values = [grown(cache, 0, kept, size) for cache in state.values]


def load_native(
    files: Tensors,
    name: str,
    spec: NativeSpec,
    dtype: torch.dtype,
    known_hash: str | None = None,
) -> NativeTarget:
    """The model whose tensors ``files`` holds, its matrices in ``dtype``; ``known_hash``: of its
    head as it is stored, None where ``dtype`` keeps it."""
    weights = read_weights(files, spec, dtype)
    return NativeTarget(name, spec, weights, dtype, f"native ({backend()})", known_hash)


def load_packed(
    files: BlockTensors, name: str, spec: NativeSpec, dtype: torch.dtype
) -> NativeTarget:
    """The model of a GGUF file on the file's own blocks; KV cache, drafter and what has no packed
    form in ``dtype``. The head's hash comes from its packed rows, which stand for the same numbers
    to the bit."""
    weights = read_packed(files, spec, dtype)
    return NativeTarget(name, spec, weights, dtype, f"native ({backend()}, {weights.form})")
