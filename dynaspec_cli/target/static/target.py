"""``protocols.Target`` in fixed shapes on this project's own weights: the path on CUDA.

One pass over a tree, its walk and its commit are one step on the device (step.py), after which the
host waits once, for a path, a token and the best tokens of each row. The residual stream is
float32, matrices and caches have the model's dtype. The same code runs on CPU tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.ops.reference import rms_norm
from dynaspec_cli.protocols import Decision, DraftTree, KeptRows
from dynaspec_cli.target.events import LoadProgress, ProgressCallback, ignore_progress
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.native_spec import NativeSpec
from dynaspec_cli.target.native_weights import NativeWeights, Tensors, read_weights
from dynaspec_cli.target.output import HeadOutput
from dynaspec_cli.target.rope import rotary_tables
from dynaspec_cli.target.state import (
    TargetState,
    check_append,
    check_max_length,
    check_rewind,
    check_rows,
    check_start,
    check_taps,
)
from dynaspec_cli.target.static.arena import Arena, Result
from dynaspec_cli.target.static.feed import fetch, lay_chance, lay_draws, lay_tree
from dynaspec_cli.target.static.graphs import Graphs, graph_pool
from dynaspec_cli.target.static.sizes import (
    ALLOTTED,
    CAPTURED_ROWS,
    DECIDED_ROWS,
    LEAST_CONTEXT,
    capacity_of,
    context_of,
    rows_of,
)
from dynaspec_cli.target.static.step import Form, Mode, Model, forward
from dynaspec_cli.target.static.tree import chain_rows
from dynaspec_cli.unread_tree import UnreadTree
from dynaspec_cli.weights.weight import Weight

PREFILL_ROWS = (64, 512)
"""Prompt tokens a pass, at least and at most."""

PREFILL_SCORES = 1 << 26
"""Attention scores of a layer that a pass of a prompt holds at most (256 MiB)."""


@dataclass(eq=False)
class StaticState(TargetState):
    """Request state in an arena that it has to itself. ``decided``: the path that the last pass has
    committed on the device and the host has not."""

    graphs: Graphs | None = None
    decided: Tensor | None = None

    @property
    def arena(self) -> Arena:
        assert self.graphs is not None
        return self.graphs.arena


class StaticTarget:
    """Gemma 2 and 3 (text), Llama, Mistral, Qwen 2 and 3. Features are float32 [n, d]."""

    def __init__(
        self,
        name: str,
        spec: NativeSpec,
        weights: NativeWeights,
        dtype: torch.dtype,
        device: torch.device,
        known_hash: str | None = None,
    ) -> None:
        self.name = name
        self.dtype, self.device = dtype, device
        self.hidden_size, self.vocab_size, self.max_context = (
            spec.hidden_size,
            spec.vocab_size,
            spec.max_context,
        )
        self.num_layers = len(spec.shapes)
        self._model = Model(spec, weights, LMHead(weights.head, softcap=spec.softcap))
        self._tables = rotary_tables(spec)
        self._hash = known_hash
        self._pool = graph_pool(device)
        self.kernels = "static" if self._pool is None else "static (CUDA graphs)"
        self._free: list[Graphs] = []

    @property
    def bit_exact(self) -> bool:
        """Not promised: keys are summed in the order in which they lie, which in a tree is another,
        and a larger tree's products have other shapes."""
        return False

    @property
    def head(self) -> LMHead:
        return self._model.head

    def head_weight(self) -> Weight:
        return self._model.head.weight

    def head_hash(self) -> str:
        if self._hash is None:
            self._hash = head_hash(self._model.head.weight.float())
        return self._hash

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Float32 [n, d]."""
        scale = self._model.spec.embed_scale
        return self._model.weights.embedding.embed(token_ids.to(self.device), scale)

    @torch.inference_mode()
    def embedding_rows(self, token_ids: Tensor) -> Tensor:
        """Float32 [n, d]."""
        return self._model.weights.embedding.embed(token_ids.to(self.device))

    @torch.inference_mode()
    def norm(self, features: Tensor) -> Tensor:
        """Float32 [n, d]."""
        return rms_norm(features, self._model.weights.norm, self._model.spec.eps)

    @torch.inference_mode()
    def begin(self, max_length: int, taps: tuple[int, ...] = ()) -> StaticState:
        check_max_length(max_length, self.max_context, self.name)
        check_taps(taps, self.num_layers, self.name)
        graphs = self._take(capacity_of(max_length))
        state = StaticState(max_length, taps, graphs=graphs)
        weakref.finalize(state, self._free.append, graphs)
        state.arena.forget(0)
        for tap in taps:
            state.arena.tap(tap)  # not within a capture
        return state

    @torch.inference_mode()
    def prefill(self, state: StaticState, token_ids: Tensor) -> HeadOutput:
        check_append(state, token_ids, self.vocab_size)
        self._settle(state)
        arena, passed, taps = state.arena, [], []
        rest = token_ids.to(self.device)
        while rest.numel():
            piece = rest[: self._prefill_rows(state.length)]
            rest = rest[piece.numel() :]
            end = state.length + piece.numel()
            rows = chain_rows(piece.numel(), self.device)
            context = min(arena.capacity, -(-end // ALLOTTED) * ALLOTTED)
            passed.append(forward(self._model, arena, rows, piece, context, state.taps))
            taps.append(self._taps(state, 0, piece.numel()))
            state.length = end
            arena.length.fill_(end)
        state.pending = 0
        kept = None if not state.taps else torch.cat([part for part in taps if part is not None])
        features = torch.cat(passed)
        return HeadOutput(features, self.norm(features), self.head, kept)

    @torch.inference_mode()
    def verify(self, state: StaticState, tree: DraftTree, start: int = 0) -> HeadOutput:
        """A tree that has grown is passed as a whole again: rows are cheap where products are not
        the limit."""
        check_start(state, tree, start)
        result, _ = self._pass(state, tree, Mode.LEAVE)
        return self._output(state, result, start)

    @torch.inference_mode()
    def decide(
        self,
        state: StaticState,
        tree: DraftTree | UnreadTree,
        sampling: SamplingConfig,
        uniforms: Tensor | None,
    ) -> Decision | None:
        """See ``protocols.DecidingTarget``."""
        mode = Mode.GREEDY
        if uniforms is not None:
            if not _decides(tree):
                return None
            plain = not (sampling.top_k or sampling.top_p < 1.0 or sampling.min_p > 0.0)
            mode = Mode.SAMPLE if plain else Mode.FILTER
        arena = self._arena_for(state, tree)
        if uniforms is not None:
            lay_chance(arena, sampling, uniforms)
        result, read = self._pass(state, tree, mode)
        state.decided = result.path
        output = self._output(state, result, 0)
        if mode is Mode.GREEDY:
            output.argmax()  # the walk was given all rows' choices
        return Decision(read, output, result.path, result.bonus, result.used)

    @torch.inference_mode()
    def commit(self, state: StaticState, rows: Tensor) -> None:
        check_rows(state, rows)
        if state.decided is None:
            arena = state.arena
            ops.kv_commit(arena.layers(), arena.length, rows.to(self.device))
            arena.length.fill_(state.length + rows.numel())
        elif not torch.equal(rows, state.decided):
            raise DynaSpecError(
                f"commit: the device has kept rows {state.decided.tolist()} of this tree, not "
                f"{rows.tolist()}"
            )
        state.length += rows.numel()
        state.pending, state.decided = 0, None

    @torch.inference_mode()
    def rewind(self, state: StaticState, length: int, max_length: int) -> None:
        check_max_length(max_length, self.max_context, self.name)
        check_rewind(state, length)
        state.length, state.pending, state.max_length = length, 0, max_length
        state.decided = None
        self._make_room(state, capacity_of(max_length))
        state.arena.forget(length)

    @torch.inference_mode()
    def recall(self, kept: Sequence[KeptRows]) -> HeadOutput:
        rows = KeptRows.joined(kept)
        return HeadOutput(
            rows.features, self.norm(rows.features), self.head, rows.taps, rows.leaders
        )

    @torch.inference_mode()
    def capture(self, max_length: int, progress: ProgressCallback = ignore_progress) -> None:
        """Capture the graphs of greedy passes for requests of up to ``max_length`` tokens; graphs
        of other passes are captured when they are first used."""
        if self._pool is None:
            return
        graphs = self._take(capacity_of(min(max_length, self.max_context)))
        contexts = {context_of(n, graphs.arena.capacity) for n in (1, graphs.arena.capacity)}
        forms = [
            Form(rows, context, Mode.GREEDY, ())
            for context in sorted(contexts)
            for rows in CAPTURED_ROWS
        ]
        for i, form in enumerate(forms):
            progress(LoadProgress("capturing CUDA graphs", i / len(forms)))
            graphs.capture(form)
        self._free.append(graphs)

    def _take(self, capacity: int) -> Graphs:
        """The smallest free arena that is large enough, or a new one; smaller free ones go."""
        fits = [graphs for graphs in self._free if graphs.arena.capacity >= capacity]
        if fits:
            found = min(fits, key=lambda graphs: graphs.arena.capacity)
            self._free.remove(found)
            return found
        self._free.clear()
        size = max(capacity, min(LEAST_CONTEXT, capacity_of(self.max_context)))
        arena = Arena.new(self._model.spec, self._tables, size, self.dtype, self.device)
        return Graphs(self._model, arena, self._pool)

    def _make_room(self, state: StaticState, capacity: int) -> None:
        """Move to a larger arena where this one is too small."""
        old = state.arena
        if capacity <= old.capacity:
            return
        state.graphs = self._take(capacity)
        for tap in state.taps:
            state.arena.tap(tap)
        for place, cache in ((state.arena.keys, old.keys), (state.arena.values, old.values)):
            place.narrow(1, 0, state.length).copy_(cache.narrow(1, 0, state.length))
        state.arena.forget(state.length)

    def _prefill_rows(self, length: int) -> int:
        heads, (least, most) = self._model.spec.shapes[0].num_heads, PREFILL_ROWS
        return max(least, min(most, PREFILL_SCORES // (heads * (length + most))))

    def _arena_for(self, state: StaticState, tree: DraftTree | UnreadTree) -> Arena:
        """The state's, with room for a tree behind the committed rows."""
        self._settle(state)
        self._make_room(state, state.length + tree.most_rows)
        return state.arena

    def _settle(self, state: StaticState) -> None:
        """The device's length is the host's again, where a decision was not committed."""
        if state.decided is not None:
            state.arena.length.fill_(state.length)
            state.decided = None

    def _pass(
        self, state: StaticState, tree: DraftTree | UnreadTree, mode: Mode
    ) -> tuple[Result, DraftTree]:
        """Feed a tree, run a pass, wait for its result, and for the tree where it is unread."""
        arena, rows = self._arena_for(state, tree), rows_of(tree.most_rows)
        context = context_of(state.length + tree.most_rows, arena.capacity)
        lay_tree(arena, tree, rows)
        draws = lay_draws(arena, tree, rows) if mode in (Mode.SAMPLE, Mode.FILTER) else None
        assert state.graphs is not None
        state.graphs.run(Form(rows, context, mode, state.taps, draws))
        parts = [arena.result.narrow(0, 0, Result.size(rows))]
        parts += [tree.report] if isinstance(tree, UnreadTree) else []
        found, *rest = fetch(arena, parts)
        try:
            read = tree.read(rest[0].clone()) if isinstance(tree, UnreadTree) else tree
            state.pending = read.most_rows
            result = Result.read(found, rows, state.pending)
            if not result.sound:
                raise NotFiniteError.of_target()
        except NotFiniteError:
            arena.forget(state.length)
            state.pending = 0
            raise
        return result, read

    def _output(self, state: StaticState, result: Result, start: int) -> HeadOutput:
        """Of the rows from ``start`` on, in memory of its own: the next pass writes over them."""
        arena, count = state.arena, result.ranked.shape[0] - start
        features, hidden = (
            part.narrow(0, start, count).clone() for part in (arena.features, arena.hidden)
        )
        taps = self._taps(state, start, count)
        return HeadOutput(features, hidden, self.head, taps, ranked=result.ranked[start:])

    def _taps(self, state: StaticState, start: int, count: int) -> Tensor | None:
        parts = [state.arena.tap(tap).narrow(0, start, count) for tap in state.taps]
        return torch.cat(parts, 1) if parts else None


def _decides(tree: DraftTree | UnreadTree) -> bool:
    """Is a tree walked where it is verified, at a temperature? Not one of more than
    ``DECIDED_ROWS`` rows, nor one of the host's whose children were drawn, nor one that is walked
    from its leaves up."""
    if tree.most_rows > DECIDED_ROWS:
        return False
    if isinstance(tree, UnreadTree):
        return tree.draws is None or not tree.draws.traversal
    return tree.q is None


def load_static(
    files: Tensors,
    name: str,
    spec: NativeSpec,
    dtype: torch.dtype,
    device: torch.device,
    known_hash: str,
    progress: ProgressCallback = ignore_progress,
) -> Any:
    """The model whose tensors ``files`` holds, on ``device``, its graphs captured;
    ``known_hash``: of its head as it is stored."""
    weights = read_weights(files, spec, dtype, device)
    target = StaticTarget(name, spec, weights, dtype, device, known_hash)
    target.capture(FIRST_LENGTH, progress)
    return target


FIRST_LENGTH = 4096
"""Tokens of the requests whose graphs are captured at load."""
