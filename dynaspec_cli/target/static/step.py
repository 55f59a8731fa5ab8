"""One pass in fixed shapes: forward, choice, walk, compaction, new length. What a CUDA graph holds.

Nothing here reads a value back, copies to the host, or has a shape that depends on data
(tools/cuda_check/static_step.py). Which rows are real, how long the context is and what was drafted
are read from the arena's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.device.kernels import tree_attention
from dynaspec_cli.ops.product import grouped_attention
from dynaspec_cli.ops.reference import LayerShape, pre_norm_layer, rms_norm
from dynaspec_cli.target.head import LMHead, ranked
from dynaspec_cli.target.native_spec import NativeSpec
from dynaspec_cli.target.native_weights import NativeWeights
from dynaspec_cli.target.static.arena import PARAMETERS, Arena, DrawsShape
from dynaspec_cli.target.static.drawn import drawn_path
from dynaspec_cli.target.static.filters import filtered
from dynaspec_cli.target.static.sizes import RANKED, splits_of
from dynaspec_cli.target.static.tree import Path, Rows, greedy_path, rows_of_tree, sampled_path

LOGITS_AT_ONCE = 1 << 25
"""Logits held together where only the best are wanted (128 MiB)."""


class Mode(Enum):
    """What follows a pass on the device. ``LEAVE``: nothing, the host walks; ``SAMPLE``: a
    temperature alone; ``FILTER``: top-k, top-p or min-p too."""

    LEAVE = "leave"
    GREEDY = "greedy"
    SAMPLE = "sample"
    FILTER = "filter"


@dataclass(frozen=True)
class Form:
    """The shapes of a pass: ``rows``, ``context`` cache rows read, what follows, which residual
    streams are kept, and ``draws`` where children were drawn and are tried here."""

    rows: int
    context: int
    mode: Mode
    taps: tuple[int, ...]
    draws: DrawsShape | None = None


@dataclass(frozen=True)
class Model:
    spec: NativeSpec
    weights: NativeWeights
    head: LMHead


def step(model: Model, arena: Arena, form: Form) -> None:
    """A pass over ``arena.tree``; its outcome is in ``arena.result``, ``features`` and ``hidden``.
    Unless it is left to the host, the path is committed: its keys and values follow the others',
    ``arena.length`` counts them."""
    n = form.rows
    count, tokens, parents = (arena.tree.narrow(0, *at) for at in ((0, 1), (1, n), (1 + n, n)))
    rows = rows_of_tree(parents, count)
    tokens = torch.where(rows.real, tokens, 0)
    x = forward(model, arena, rows, tokens, form.context, form.taps)
    hidden = rms_norm(x, model.weights.norm, model.spec.eps)
    arena.features.narrow(0, 0, n).copy_(x)
    arena.hidden.narrow(0, 0, n).copy_(hidden)
    best, sound, logits = _scored(model.head, hidden, form.mode in (Mode.SAMPLE, Mode.FILTER))
    path, bonus, used = _walk(arena, rows, tokens, best, logits, form)
    if form.mode is not Mode.LEAVE:
        _compact(arena, rows, path)
    # A walk looks at the rows of its path alone, and a greedy one at all.
    looked = rows.real if form.mode in (Mode.LEAVE, Mode.GREEDY) else path.accepted
    sound = (sound | ~looked).all().long()[None] * (bonus >= 0)
    parts = [path.size, bonus, sound, used, path.rows, best.flatten()]
    arena.result.narrow(0, 0, 4 + n + n * RANKED).copy_(torch.cat(parts))


def forward(
    model: Model, arena: Arena, rows: Rows, tokens: Tensor, context: int, taps: tuple[int, ...]
) -> Tensor:
    """The residual stream float32 [n, d] after the last layer, of tokens int64 [n]; those of
    ``taps`` go to the arena's. Keys and values are written behind the committed ones, those of
    padding behind the capacity; ``context`` rows of the cache are read."""
    spec, n = model.spec, tokens.numel()
    at = arena.length + rows.depth
    slots = torch.where(rows.real, arena.length + rows.number, arena.scratch(rows.number))
    # Nodes beyond the last position are never accepted, but their rotation must exist.
    turns = {
        name: tuple(table.index_select(0, at.clamp(max=table.shape[0] - 1)) for table in pair)
        for name, pair in arena.turns.items()
    }
    read = _Reader.of(arena, rows, context, {shape.window for shape in spec.shapes})
    x = model.weights.embedding.embed(tokens, spec.embed_scale)
    for index, (shape, weights) in enumerate(zip(spec.shapes, model.weights.layers, strict=True)):
        if index in taps:
            arena.tap(index).narrow(0, 0, n).copy_(x)
        keys, values = arena.keys.select(0, index), arena.values.select(0, index)

        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            keys: Tensor = keys,
            values: Tensor = values,
            shape: LayerShape = shape,
        ) -> Tensor:
            keys.index_copy_(0, slots, k.to(keys.dtype))
            values.index_copy_(0, slots, v.to(values.dtype))
            return read(q, keys, values, shape)

        cos, sin = turns[spec.rope[index]]
        x = pre_norm_layer(x, weights, cos, sin, shape, attend)
    if len(spec.shapes) in taps:
        arena.tap(len(spec.shapes)).narrow(0, 0, n).copy_(x)
    return x


@dataclass(frozen=True)
class _Reader:
    """Attention of a pass over the first ``context`` rows of a layer's cache. ``splits`` 0: scores
    of all keys are written, ``seen`` has the mask of each window. Else keys are split, and a row's
    ancestors are the bits of ``bits`` int64 [n]; ``depth`` int64 [2 n] is of queries, then of the
    tree's rows, which are the same."""

    length: Tensor
    context: int
    splits: int
    seen: dict[int, Tensor]
    depth: Tensor
    bits: Tensor

    @staticmethod
    def of(arena: Arena, rows: Rows, context: int, windows: set[int]) -> _Reader:
        n = rows.number.numel()
        splits = splits_of(n, context)
        nothing = rows.number[:0]
        if not splits:
            seen = {window: _seen(arena.length, rows, context, window) for window in windows}
            return _Reader(arena.length, context, 0, seen, nothing, nothing)
        bits = (rows.ancestors.long() << rows.number).sum(1)
        depth = torch.cat([rows.depth, rows.depth])
        return _Reader(arena.length, context, splits, {}, depth, bits)

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, shape: LayerShape) -> Tensor:
        keys, values = keys.narrow(0, 0, self.context), values.narrow(0, 0, self.context)
        if not self.splits:
            mask = self.seen[shape.window]
            return grouped_attention(q, keys, values, mask, shape.scale, shape.softcap)
        return tree_attention(
            q, keys, values, self.length, self.depth, self.bits, shape.scale, shape.window,
            shape.softcap, self.splits,
        )  # fmt: skip


def _seen(length: Tensor, rows: Rows, context: int, window: int) -> Tensor:
    """bool [n, context]: the committed rows, and of the tree's a row's ancestors and itself; with a
    window the nearest positions of them."""
    slot = torch.arange(context, device=length.device)
    row = (slot - length).clamp(0, rows.number.numel() - 1)
    drafted = (slot >= length) & (slot < length + rows.number.numel())
    seen = (slot < length) | (rows.ancestors.index_select(1, row) & drafted)
    if window > 0:
        at = torch.where(drafted, length + rows.depth.index_select(0, row), slot)
        seen = seen & (length + rows.depth[:, None] - at < window)
    return seen


def _scored(head: LMHead, hidden: Tensor, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(best tokens int64 [n, RANKED], are a row's logits numbers bool [n], logits float32 [n, V]
    where they are wanted whole, else [0, V])."""
    vocab = head.rows
    pieces = 1 if whole else -(-hidden.shape[0] * vocab // LOGITS_AT_ONCE)
    best, sound, logits = [], [], hidden.new_empty(0, vocab)
    for piece in hidden.chunk(pieces):
        logits = head.logits(piece)
        values, ids = ranked(logits, min(RANKED, vocab))
        best.append(ids if ids.shape[1] == RANKED else ids[:, :1].expand(-1, RANKED))
        # NaN ranks highest, so the best betrays it; a sampled walk refuses any infinity.
        sound.append(logits.isfinite().all(1) if whole else values[:, 0].isfinite())
    return torch.cat(best), torch.cat(sound), logits if whole else logits.narrow(0, 0, 0)


def _walk(
    arena: Arena, rows: Rows, tokens: Tensor, best: Tensor, logits: Tensor, form: Form
) -> tuple[Path, Tensor, Tensor]:
    """(path, bonus int64 [1], -1 where no token has mass; uniforms used int64 [1])."""
    if form.mode in (Mode.LEAVE, Mode.GREEDY):
        path, bonus = greedy_path(rows, tokens, best[:, 0])
        return path, bonus, torch.zeros_like(bonus)
    parameters = arena.chance.narrow(0, 0, PARAMETERS)
    scaled = logits / parameters[:1].float()
    plain = form.mode is Mode.SAMPLE
    p = torch.softmax(scaled, -1) if plain else filtered(scaled, parameters[1:])
    uniforms = arena.chance.narrow(0, PARAMETERS, rows.number.numel() + 1)
    if form.draws is None:
        path, token, used, mass = sampled_path(rows, tokens, p, uniforms)
    else:
        path, token, used, mass = drawn_path(rows, p, uniforms, arena.draws[form.draws])
    return path, torch.where(mass, token, -1), used


def _compact(arena: Arena, rows: Rows, path: Path) -> None:
    """Rows of the path follow the committed ones in all caches."""
    kept = torch.where(rows.number < path.size, path.rows, -1)
    ops.kv_commit(arena.layers(), arena.length, kept)
    arena.length.add_(path.size)
