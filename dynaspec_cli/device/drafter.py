"""EAGLE drafters in fixed shapes: a pass over padded rows, with the length of the cache on the
device.

The cache is the drafter's own (drafters/pairs.py): committed pairs, then rows of the tree, which a
64-bit mask a row lets see each other. Padding writes to the cache's last row, which nothing reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dynaspec_cli.device.kernels import tree_attention
from dynaspec_cli.drafters.eagle import DrafterState, EagleDrafter
from dynaspec_cli.drafters.eagle1 import Eagle1Drafter
from dynaspec_cli.drafters.eagle3 import Eagle3Drafter
from dynaspec_cli.drafters.layer import layer_around
from dynaspec_cli.drafters.pairs import PairCache
from dynaspec_cli.drafters.published_drafter import PublishedDrafter
from dynaspec_cli.ops.reference import LayerShape, pre_norm_layer
from dynaspec_cli.protocols import Committed, Drafter

MOST_TREE_ROWS = 64
"""Rows that a mask of 64 bits tells apart."""


@dataclass(eq=False)
class Memory:
    """A request's caches, a tensor [rows, kv_heads, head_dim] a layer, and the rotation of every
    position, float32 [rows, head_dim]."""

    k: list[Tensor]
    v: list[Tensor]
    cos: Tensor
    sin: Tensor


class Pass(NamedTuple):
    """Rows [n] of one pass. ``tokens``, and for drafters that read it the ``current`` token before
    each. ``slots`` int64: their places in the cache; ``length`` int64 [1] committed pairs before
    the tree; ``depth`` and ``ancestors`` as ``tree_attention`` takes them."""

    tokens: Tensor
    current: Tensor
    slots: Tensor
    length: Tensor
    depth: Tensor
    ancestors: Tensor


class FixedDrafter(Protocol):
    """A drafter whose passes can be captured."""

    width: int

    def memory(self, state: PairCache) -> Memory: ...

    def states(self, committed: Committed) -> Tensor:
        """Float32 [m, width] of committed rows: what pairs carry."""
        ...

    def run(self, memory: Memory, states: Tensor, rows: Pass) -> tuple[Tensor, Tensor]:
        """(what the head reads [n, d], what is fed back [n, width]) of states float32 [n,
        width]."""
        ...

    def features(self, states: Tensor) -> Tensor | None:
        """What an early router reads of the states that a pass began from (``DraftRows``)."""
        ...

    def committed(self, state: Any, tokens: Tensor) -> None:
        """Note on the host that pairs with these tokens (int64 [m]) were read."""
        ...


def fixed_drafter(drafter: Drafter) -> FixedDrafter | None:
    """The fixed form of a drafter; None for one that has none."""
    if type(drafter) is EagleDrafter:
        return FixedEagle(drafter)
    if type(drafter) in (Eagle1Drafter, Eagle3Drafter):
        assert isinstance(drafter, PublishedDrafter)
        return FixedPublished(drafter)
    return None


def _attention(memory: Memory, index: int, rows: Pass, shape: LayerShape) -> Any:
    """The attention of layer ``index``: writes keys and values, then reads the cache."""
    keys, values = memory.k[index], memory.v[index]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.index_copy_(0, rows.slots, k.to(keys.dtype))
        values.index_copy_(0, rows.slots, v.to(values.dtype))
        return tree_attention(
            q, keys, values, rows.length, rows.depth, rows.ancestors, shape.scale, shape.window,
            shape.softcap,
        )  # fmt: skip

    return attend


def _turns(memory: Memory, rows: Pass) -> tuple[Tensor, Tensor]:
    n = rows.tokens.shape[0]
    at = (rows.length + rows.depth[:n]).clamp(max=memory.cos.shape[0] - 1)
    return memory.cos[at], memory.sin[at]


def _cleared(state: PairCache) -> tuple[list[Tensor], list[Tensor]]:
    """The caches, with zeros where nothing was written: what is not seen is multiplied by 0."""
    for cache in (*state.k, *state.v):
        cache[state.length :].zero_()
    return state.k, state.v


class FixedEagle:
    """``EagleDrafter``: states are features in units of its scale."""

    def __init__(self, drafter: EagleDrafter) -> None:
        self._drafter = drafter
        c = drafter.config
        self.width = c.hidden_size
        self._shape = LayerShape(
            c.num_heads, c.num_kv_heads, c.head_dim, c.eps, c.attention_scale, c.window,
            c.activation,
        )  # fmt: skip

    def memory(self, state: PairCache) -> Memory:
        assert isinstance(state, DrafterState)
        k, v = _cleared(state)
        cos, sin = self._drafter._rotations(k[0].shape[0])
        return Memory(k, v, cos, sin)

    def states(self, committed: Committed) -> Tensor:
        features = committed.output.features[committed.rows.to(committed.output.features.device)]
        return features.float() / self._drafter.config.feature_scale

    def run(self, memory: Memory, states: Tensor, rows: Pass) -> tuple[Tensor, Tensor]:
        drafter = self._drafter
        x = drafter._inputs(states, rows.tokens, rows.current)
        cos, sin = _turns(memory, rows)
        for i, weights in enumerate(drafter.layers):
            attend = _attention(memory, i, rows, self._shape)
            x = pre_norm_layer(x, weights, cos, sin, self._shape, attend)
        return drafter.target.norm(x), x

    def features(self, states: Tensor) -> Tensor | None:
        return states

    def committed(self, state: Any, tokens: Tensor) -> None:
        state.begin_read(0)
        state.end_read(tokens.numel())
        state.last_token = int(tokens[-1])
        state.tree_tokens = tokens[:0]


class FixedPublished:
    """EAGLE-1 and EAGLE-3 heads."""

    def __init__(self, drafter: PublishedDrafter) -> None:
        self._drafter = drafter
        self.width = drafter.config.hidden_size

    def memory(self, state: PairCache) -> Memory:
        k, v = _cleared(state)
        device = self._drafter.target.device
        cos, sin = self._drafter.rotary.rows(torch.arange(k[0].shape[0]))
        return Memory(k, v, cos.to(device), sin.to(device))

    def states(self, committed: Committed) -> Tensor:
        return self._drafter.states(committed.output, committed.rows)

    def run(self, memory: Memory, states: Tensor, rows: Pass) -> tuple[Tensor, Tensor]:
        drafter, shape = self._drafter, self._drafter.config.layer
        cos, sin = _turns(memory, rows)

        def layer(i: int, x: Tensor, read: Tensor | None) -> Tensor:
            attend = _attention(memory, i, rows, shape)
            return layer_around(x, read, drafter.layers[i], cos, sin, shape, attend)

        return drafter.forward(states, drafter._embed(rows.tokens), layer)

    def features(self, states: Tensor) -> Tensor | None:
        return None

    def committed(self, state: Any, tokens: Tensor) -> None:
        state.begin_read(0)
        state.end_read(tokens.numel())
