"""One decoder layer as one op."""

from __future__ import annotations

from torch import Tensor

from dynaspec_cli.ops import reference


def decoder_layer(
    x: Tensor,
    weights: list[Tensor],
    k_cache: Tensor,
    v_cache: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    mask: Tensor,
    cache_len: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
    window: int,
    activation: str,
) -> Tensor:
    """One pre-norm decoder layer over n rows; see ``reference.decoder_layer`` for shapes, dtypes and rounding."""
    return reference.decoder_layer(
        x, weights, k_cache, v_cache, cos, sin, positions, mask, cache_len, num_heads, num_kv_heads, head_dim,
        eps, scale, window, activation,
    )  # fmt: skip
