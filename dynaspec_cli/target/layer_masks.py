"""Attention masks of a pass for ``transformers`` models: which mask each kind of layer wants, and
in which form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError

SUPPORTED_LAYERS = ("full_attention", "sliding_attention")


def layer_kinds(config: Any, name: str) -> dict[str, int] | int:
    """Windows of a text config's layers: {layer type: window} where the model takes a dict of masks
    (Gemma 3, Qwen 2 and 3), one window for all layers elsewhere (Llama, Mistral). Window 0 is full
    attention.

    Raises ``DynaSpecError`` for layers whose state cannot be rolled back or masked as a tree
    (linear attention, chunks, windows that the model applies by itself).
    """
    if getattr(config, "attention_layers", None) is not None:
        # GPT-Neo masks by the row in the cache, which in a tree is not the position.
        raise DynaSpecError(
            f"{name}: its layers apply a window of their own and cannot verify a draft tree; "
            "choose a model with full or sliding-window attention"
        )
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None)
    if types is None:
        if getattr(config, "attention_chunk_size", None) is not None:
            raise DynaSpecError(
                f"{name}: chunked attention is not supported; choose a model with full or "
                "sliding-window attention"
            )
        return window
    unknown = sorted(set(types) - set(SUPPORTED_LAYERS))
    if unknown:
        raise DynaSpecError(
            f"{name}: layers of type {', '.join(unknown)} cannot verify a draft tree; expected "
            f"only {' and '.join(SUPPORTED_LAYERS)}"
        )
    return {kind: window if kind == "sliding_attention" else 0 for kind in sorted(set(types))}


def allowed(mask: Tensor, positions: Tensor, length: int, window: int) -> Tensor:
    """bool [n, length + t]: what each row of a pass sees. ``mask`` bool [n, t] and ``positions``
    int64 [t]: of the rows behind the committed ones, of which the pass is the last n; committed row
    j holds position j."""
    n = mask.shape[0]
    past = torch.arange(length, device=mask.device)
    seen = torch.cat([torch.ones(n, length, dtype=torch.bool, device=mask.device), mask], 1)
    if window > 0:
        seen &= positions[-n:, None] - torch.cat([past, positions])[None, :] < window
    return seen


def attention_masks(
    kinds: dict[str, int] | int,
    mask: Tensor,
    positions: Tensor,
    length: int,
    additive: torch.dtype | None,
) -> dict[str, Tensor] | Tensor:
    """The 4-D masks [1, 1, n, length + t] for ``layer_kinds``: bool, or additive of the given dtype
    (eager attention)."""

    def build(window: int) -> Tensor:
        seen = allowed(mask, positions, length, window)[None, None]
        if additive is None:
            return seen
        return torch.zeros(seen.shape, dtype=additive, device=seen.device).masked_fill_(
            ~seen, torch.finfo(additive).min
        )

    if isinstance(kinds, dict):
        return {kind: build(window) for kind, window in kinds.items()}
    return build(kinds)
