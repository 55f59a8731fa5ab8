"""One decoder layer as one op."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.ops import reference
from dynaspec_cli.ops.checks import check_weight, expect
from dynaspec_cli.ops.extension import EXTENSION, compiled
from dynaspec_cli.ops.layer import LayerWeights

_OP = "decoder_layer"
MATRICES = (torch.float32, torch.bfloat16, torch.float16)
_ops = torch.ops.dynaspec


def decoder_layer(
    x: Tensor,
    weights: LayerWeights,
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
    softcap: float = 0.0,
) -> Tensor:
    """One pre-norm decoder layer over n rows, float32 [n, d]; shapes, dtypes and rounding stand in
    ``reference.decoder_layer``.

    On the CPU a row's result is the same bits whatever the number and order of the rows, the number
    of threads, and whether its ancestors are tree rows or committed ones (the positions of a path
    run on from ``cache_len``).
    """
    args = (
        x, weights, k_cache, v_cache, cos, sin, positions, mask, cache_len, num_heads, num_kv_heads,
        head_dim, eps, scale, window, activation, softcap,
    )  # fmt: skip
    if x.device.type == "cpu" and compiled(x):
        return _ops.decoder_layer(x, *weights, *args[2:])
    _check(*args)
    return reference.decoder_layer(*args)


def _check(
    x: Tensor,
    weights: LayerWeights,
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
    softcap: float = 0.0,
) -> None:
    """The compiled op's checks, but for those of values on another device."""
    fits = x.dim() == 2 and x.shape[1] > 0 and x.dtype == torch.float32
    expect(fits, _OP, "x", "contiguous float32 [n, d]", x)
    groups = num_heads > 0 and num_kv_heads > 0 and num_heads % num_kv_heads == 0
    expect(
        groups, _OP, "num_heads", f"a positive multiple of num_kv_heads = {num_kv_heads}", num_heads
    )
    expect(head_dim > 0 and head_dim % 2 == 0, _OP, "head_dim", "a positive even number", head_dim)
    expect(cache_len >= 0, _OP, "cache_len", "0 or more", cache_len)
    expect(window >= 0, _OP, "window", "0 (none) or more", window)
    expect(0 < scale < 1e30, _OP, "scale", "a finite number above 0", scale)
    expect(0 <= eps < 1e30, _OP, "eps", "a finite number of 0 or more", eps)
    expect(0 <= softcap < 1e30, _OP, "softcap", "0 (none) or a finite number above it", softcap)
    expect(activation in ("silu", "gelu_tanh"), _OP, "activation", "silu or gelu_tanh", activation)
    n, d = x.shape
    t = positions.shape[0] if positions.dim() == 1 else -1
    fits = positions.dtype == torch.int64 and t >= n
    expect(fits, _OP, "positions", f"contiguous int64 [t] with t >= {n} rows", positions)
    fits = mask.dtype == torch.bool and tuple(mask.shape) == (n, t)
    expect(fits, _OP, "mask", f"contiguous bool [{n}, {t}]", mask)
    for name, table in (("cos", cos), ("sin", sin)):
        fits = table.dtype == torch.float32 and tuple(table.shape) == (n, head_dim)
        expect(fits, _OP, name, f"contiguous float32 [{n}, {head_dim}]", table)
    if x.device.type == "cpu":
        low = int(positions.min()) if t else cache_len
        expect(low >= cache_len, _OP, "positions", f"at least cache_len = {cache_len}", low)
        own = bool(mask[:, t - n :].diagonal().all())
        expect(own, _OP, "mask", "every row to attend to itself", "False")
    rows = cache_len + t
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        fits = (
            cache.dim() == 3
            and cache.shape[0] >= rows
            and tuple(cache.shape[1:]) == (num_kv_heads, head_dim)
        )
        fits = (
            fits and cache.dtype in (torch.float32, torch.bfloat16) and cache.dtype == k_cache.dtype
        )
        wanted = f"float32 or bfloat16 [at least {rows}, {num_kv_heads}, {head_dim}]"
        expect(fits, _OP, name, wanted, cache)
    _check_weights(
        weights, d, num_heads * head_dim, (num_heads + 2 * num_kv_heads) * head_dim, head_dim
    )


def _check_weights(w: LayerWeights, d: int, q_size: int, qkv_size: int, head_dim: int) -> None:
    norms = {"input_norm": d, "mlp_norm": d, "post_attention_norm": d, "post_mlp_norm": d}
    norms |= {"q_norm": head_dim, "k_norm": head_dim}
    for name, size in norms.items():
        norm = getattr(w, name)
        if norm.numel() == 0 and name not in ("input_norm", "mlp_norm"):
            continue
        fits = norm.dtype == torch.float32 and tuple(norm.shape) == (size,)
        expect(fits, _OP, name, f"contiguous float32 [{size}]", norm)
    both = (w.q_norm.numel() == 0) == (w.k_norm.numel() == 0)
    expect(both, _OP, "k_norm", "q_norm and k_norm both or neither", "one")
    fits = w.qkv_bias.numel() == 0 or tuple(w.qkv_bias.shape) == (qkv_size,)
    expect(fits, _OP, "qkv_bias", f"[{qkv_size}], or empty", w.qkv_bias)
    inner = sum(part.shape[0] for part in w.gate_up)
    expect(inner > 0 and inner % 2 == 0, _OP, "gate_up", "an even number of rows", inner)
    formats = list(w.formats)
    for name, parts, rows, columns in (
        ("qkv", w.qkv, qkv_size, d),
        ("out", (w.out,), d, q_size),
        ("gate_up", w.gate_up, inner, d),
        ("down", (w.down,), d, inner // 2),
    ):
        expect(1 <= len(parts) <= 3, _OP, name, "1 to 3 matrices", len(parts))
        expect(len(formats) >= len(parts), _OP, "formats", "one for each matrix", "too few")
        for part in parts:
            if (form := formats.pop(0)) >= 0:
                check_weight(_OP, name, part, None, form, columns)
                continue
            fits = part.dim() == 2 and part.shape[1] == columns and part.dtype in MATRICES
            expect(fits, _OP, name, f"float32, bfloat16 or float16 [rows, {columns}]", part)
        total = sum(part.shape[0] for part in parts)
        expect(total == rows, _OP, name, f"{rows} rows", total)
    expect(not formats, _OP, "formats", "one for each matrix", f"{len(formats)} too many")


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


if EXTENSION.module is not None:
    torch.library.register_fake("dynaspec::decoder_layer", _fake)
