"""The compiled ops' argument checks in Python, for the fallback: the same ``ValueError``s."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynaspec_cli.ops.failures import NOT_FINITE, NotFiniteLogits
from dynaspec_cli.ops.formats import DENSE, packed_format

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def expect(condition: bool, op: str, name: str, expected: str, got: object) -> None:
    if not condition:
        shown = describe(got) if isinstance(got, Tensor) else got
        raise ValueError(f"{op}: {name}: expected {expected}, got {shown}")


def check_weight(
    op: str,
    name: str,
    weight: Tensor,
    scale: Tensor | None,
    format: int = DENSE,
    columns: int = 0,
) -> None:
    """[m, k] of a weight dtype; int8 needs float32 ``scale`` [m]. Packed: uint8 [m, row bytes] of
    ``columns`` values."""
    expect(weight.dim() == 2, op, name, "a contiguous matrix [rows, k]", weight)
    if format != DENSE:
        form = packed_format(format)
        wanted = f"rows of a multiple of {form.block[0]} values in {form.name}"
        expect(form.fits(columns), op, name, wanted, columns)
        width = form.row_bytes(columns)
        fits = weight.dtype == torch.uint8 and weight.shape[1] == width
        expect(fits, op, name, f"uint8 [rows, {width}] ({form.name})", weight)
        return
    expect(weight.dtype in WEIGHT_DTYPES, op, name, "float32, bfloat16, float16 or int8", weight)
    scaled = scale is not None and scale.numel() > 0
    expect(scaled or weight.dtype != torch.int8, op, name, "a scale with int8 rows", "none")
    if scale is not None and scaled:
        fits = scale.dtype == torch.float32 and tuple(scale.shape) == (weight.shape[0],)
        expect(fits, op, "scale", f"contiguous float32 [{weight.shape[0]}]", scale)


def check_rows(op: str, name: str, x: Tensor, width: int) -> None:
    """Activations [n, width]."""
    fits = x.dim() == 2 and x.shape[1] == width and x.dtype in ACTIVATION_DTYPES
    expect(fits, op, name, f"float32, bfloat16 or float16 [n, {width}]", x)


def check_linear(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, format: int
) -> None:
    columns = width_of(x, weight, format)
    check_weight(op, "weight", weight, scale, format, columns)
    check_rows(op, "x", x, columns)
    if bias is not None:
        check_bias(op, "bias", bias, weight.shape[0])


def check_head(
    op: str,
    hidden: Tensor,
    head: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    temperature: float,
    format: int,
    gather: bool,
) -> None:
    finite = math.isfinite(temperature) and temperature > 0
    expect(finite, op, "temperature", "a finite number above 0", temperature)
    columns = width_of(hidden, head, format)
    check_weight(op, "head", head, scale, format, columns)
    check_rows(op, "hidden", hidden, columns)
    if row_ids.numel() and not gather:
        fits = row_ids.dtype == torch.int32 and tuple(row_ids.shape) == (head.shape[0],)
        expect(fits, op, "row_ids", f"int32 [{head.shape[0]}], or empty", row_ids)
    if gather:
        fits = row_ids.numel() > 0 and row_ids.dim() == 1 and row_ids.dtype == torch.int32
        expect(fits and not scale.numel(), op, "gather", "row_ids, and a head without a scale", "")
        inside = bool((row_ids >= 0).all() and (row_ids < head.shape[0]).all())
        expect(inside, op, "row_ids", f"rows of the head, below {head.shape[0]}", "others")


def width_of(x: Tensor, weight: Tensor, format: int) -> int:
    """Columns of a weight: its own, or of packed rows those of x."""
    own = weight if format == DENSE else x
    return int(own.shape[1]) if own.dim() == 2 else 0


def check_blocks(op: str, blocks: Tensor, rows: int) -> None:
    """int32 [b, 2], ascending, disjoint, within [0, rows), not all empty."""
    fits = blocks.dim() == 2 and blocks.shape[1] == 2 and blocks.dtype == torch.int32
    expect(fits, op, "blocks", "int32 [b, 2]", blocks)
    flat = blocks.flatten().tolist()
    ordered = all(a <= b for a, b in zip([0, *flat], [*flat, rows], strict=True))
    expect(
        ordered, op, "blocks", f"ascending, disjoint ranges within [0, {rows})", blocks.tolist()[:8]
    )
    expect(sum(flat[1::2]) > sum(flat[::2]), op, "blocks", "at least one row", "none")


def check_union(
    op: str, scores: Tensor, offsets: Tensor, extra_rows: Tensor, core_rows: int, budget: int
) -> None:
    fits = offsets.dim() == 1 and offsets.dtype == torch.int32
    expect(fits, op, "cluster_offsets", "int32 [M + 1]", offsets)
    fits = extra_rows.dim() == 1 and extra_rows.dtype == torch.int32
    expect(fits, op, "extra_rows", "int32 [r]", extra_rows)
    borders = offsets.tolist()
    ordered = (
        all(a <= b for a, b in zip([0, *borders[:-1]], borders, strict=True)) if borders else True
    )
    expect(ordered, op, "cluster_offsets", "ascending borders from 0 on", borders[:8])
    if extra_rows.numel():
        low = int(extra_rows.min())
        expect(low >= 0, op, "extra_rows", "rows from 0 on", low)
    expect(core_rows >= 0, op, "core_rows", "0 or more rows", core_rows)
    expect(budget >= 0, op, "budget", "0 or more rows", budget)
    if scores.numel():
        clusters = max(len(borders) - 1, 0)
        fits = scores.dim() == 2 and scores.shape[1] == clusters and scores.dtype == torch.float32
        expect(fits, op, "cluster_scores", f"float32 [n, {clusters}]", scores)
        expect(not bool(scores.isnan().any()), op, "cluster_scores", "numbers", "a NaN")


def check_router(
    features: Tensor, tokens_embedding: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> None:
    """Features [n, d] (and embeddings [n, e]) through w1 [h, d + e] with its bias, or none, and w2
    [M, h or d] with its bias, or none."""
    op = "router_clusters"
    n = features.shape[0] if features.dim() else 0
    check_input(op, "features", features, n)
    width = features.shape[1]
    if w1.numel():
        check_input(op, "tokens_embedding", tokens_embedding, n)
        check_layer(op, "w1", w1, width + tokens_embedding.shape[1])
        check_bias(op, "b1", b1, w1.shape[0])
        width = w1.shape[0]
    check_layer(op, "w2", w2, width)
    if b2.numel():
        check_bias(op, "b2", b2, w2.shape[0])


def check_input(op: str, name: str, x: Tensor, rows: int) -> None:
    fits = x.dim() == 2 and x.shape[0] == rows and x.dtype in ACTIVATION_DTYPES
    expect(fits, op, name, f"float32, bfloat16 or float16 [{rows}, *]", x)


def check_layer(op: str, name: str, weight: Tensor, width: int) -> None:
    fits = weight.dim() == 2 and weight.shape[1] == width
    expect(fits, op, name, f"[*, {width}] (the width of its input)", weight)
    check_weight(op, name, weight, None)


def check_bias(op: str, name: str, bias: Tensor, size: int) -> None:
    fits = tuple(bias.shape) == (size,) and bias.is_floating_point()
    expect(fits, op, name, f"floating-point [{size}]", bias)


def check_finite(op: str, lse: Tensor) -> None:
    bad = (~lse.isfinite()).nonzero()
    if bad.numel():
        raise NotFiniteLogits(f"{op}{NOT_FINITE}NaN or infinity in row {int(bad[0])}")
