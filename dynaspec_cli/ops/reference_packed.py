"""Plain PyTorch references of packed weights; csrc/cpu/kernels/packed_layout.h draws their rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.ops.extension import backend
from dynaspec_cli.ops.formats import PAIRS, PackedFormat, activation_scales, packed_format


def embed_rows(weight: Tensor, ids: Tensor, format: int, columns: int) -> Tensor:
    """Rows ``ids`` int64 [n] of packed rows uint8 [m, row bytes], float32 [n, columns]."""
    form = packed_format(format)
    unpack = _pairs if form.activations == PAIRS else _quads
    return unpack(weight[ids].cpu(), form, columns)


def activations(x: Tensor, form: PackedFormat, level: str = "scalar") -> Tensor:
    """What the kernels of a level multiply in place of x [n, k]: float64, each value a whole number
    of the scale of its row or group. Halves are rounded to even; a row of zeros stays one."""
    width, most = activation_scales(form, level, x.shape[1])
    groups = x.float().reshape(x.shape[0], -1, width)
    scale = groups.abs().amax(-1, keepdim=True) / most
    codes = torch.where(scale >= torch.finfo(torch.float32).tiny, groups / scale, 0.0).round()
    return (codes.double() * scale.double()).reshape(x.shape)


def products(x: Tensor, weight: Tensor, format: int) -> Tensor:
    """x [n, k] times packed rows [m, row bytes], float32 [n, m], up to rounding; on the level in
    use."""
    rows = embed_rows(weight, torch.arange(weight.shape[0]), format, x.shape[1])
    quantised = activations(x, packed_format(format), backend().removeprefix("cpu-"))
    return (quantised @ rows.double().t()).float()


def _halves(rows: Tensor, at: int, count: int) -> Tensor:
    return rows[:, at : at + 2 * count].contiguous().view(torch.float16).float()


def _words(rows: Tensor, at: int, count: int) -> Tensor:
    return rows[:, at : at + 2 * count].contiguous().view(torch.int16).int() & 0xFFFF


def _pairs(rows: Tensor, form: PackedFormat, columns: int) -> Tensor:
    parts, at, left = [], 0, columns // 32
    while left:
        g = next(size for size in (8, 4, 2, 1) if size <= left)
        scale = _halves(rows, at, g)
        at += 2 * g
        low = torch.zeros_like(scale)
        if form.minimum:
            low = _halves(rows, at, g)
            at += 2 * g
        place, side = torch.arange(32 * g), min(32, 8 * g)
        if form.bits == 8:
            codes = rows[:, at : at + 32 * g].contiguous().view(torch.int8).int()
            codes = codes.view(len(rows), -1, 2, side, 2).permute(0, 1, 4, 2, 3).flatten(1)
            at += 32 * g
        else:
            words = _words(rows, at, 8 * g).reshape(len(rows), -1, 1, side)
            nibbles = torch.tensor([0, 4, 8, 12], dtype=torch.int32)[:, None]
            codes = (words >> nibbles & 15).flatten(1)
            at += 16 * g
            if form.bits == 5:
                f, word = place % (4 * side) // side, place // (4 * side) * side + place % side
                bit = 8 * (f // 2) + 4 * (f % 2) + word // (2 * g)
                codes = codes | (_words(rows, at, 2 * g)[:, place % (2 * g)] >> bit & 1) << 4
                at += 4 * g
            if not form.minimum:
                codes = codes - (1 << (form.bits - 1))
        c, lane, per = place // 16, place // 2 % 8, 8 // g
        value = lane // per * 32 + 2 * (c * per + lane % per) + place % 2
        natural = torch.empty_like(codes)
        natural[:, value] = codes
        values = natural.view(len(rows), g, 32).float() * scale[:, :, None]
        parts.append((values + low[:, :, None] if form.minimum else values).flatten(1))
        left -= g
    return torch.cat(parts, 1)


def _quads(rows: Tensor, form: PackedFormat, columns: int) -> Tensor:
    groups = rows.reshape(-1, form.block[1])
    d = _halves(groups, 0, 1)
    if form.minimum:
        packed = groups[:, 4:12].int()
        high = groups[:, 12:16].int()
        least = packed >> 6 | torch.cat([high & 15, high >> 4], 1) << 2
        scale = d * (packed & 63).float()
        low = _halves(groups, 2, 1) * least.float()
        at = 16
    else:
        both = groups[:, 2:18].contiguous().view(torch.int8).float()
        scale = d * torch.stack([both[:, :8], both[:, 8:]], 2).flatten(1)  # of blocks of 16
        low, at = torch.zeros_like(scale), 18
    fifth = groups[:, at : at + 32].int() if form.bits == 5 else None
    at += 32 if form.bits == 5 else 0
    nibbles = groups[:, at : at + 128].int()
    codes = torch.cat([nibbles & 15, nibbles >> 4], 1)
    if fifth is not None:
        bit = torch.arange(8, dtype=torch.int32)[:, None]
        codes = codes | (fifth[:, None] >> bit & 1).flatten(1) << 4
    if form.bits == 6:
        field = torch.tensor([0, 2, 4, 6], dtype=torch.int32)[:, None]
        codes = (codes | (groups[:, None, at + 128 :].int() >> field & 3).flatten(1) << 4) - 32
    place = torch.arange(256)
    y, lane = place // 32, place // 4 % 8
    natural = torch.empty_like(codes)
    natural[:, 32 * lane + 4 * (y // 2 + 4 * (y % 2)) + place % 4] = codes
    width = 256 // scale.shape[1]
    values = natural.view(-1, scale.shape[1], width).float() * scale[:, :, None]
    return (values - low[:, :, None]).reshape(len(rows), columns)
