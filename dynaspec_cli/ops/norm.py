"""Norms of few rows, and the drafter's input projection."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.ops import reference
from dynaspec_cli.ops.checks import expect
from dynaspec_cli.ops.extension import EXTENSION, compiled

_ops = torch.ops.dynaspec


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last axis, float32 [n, d]; a row's result does not depend on
    the rows beside it."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 2 and compiled(x):
        return _ops.rms_norm(x.contiguous(), weight, eps)
    return reference.rms_norm(x, weight, eps)


def drafter_input(
    features: Tensor, embedded: Tensor, norms: Tensor, fc: Tensor, gate: Tensor, eps: float
) -> Tensor:
    """Float32 [n, d]; see ``reference.drafter_input``."""
    if features.device.type == "cpu" and compiled(features):
        return _ops.drafter_input(features.contiguous(), embedded, norms, fc, gate, eps)
    op, parts = "drafter_input", norms.shape[0]
    n, d = features.shape[0], norms.shape[1]
    for name, x, rows in (
        ("features", features, n),
        ("embedded", embedded, (parts - 1) * n),
        ("norms", norms, parts),
    ):
        fits = tuple(x.shape) == (rows, d) and x.dtype == torch.float32
        expect(fits, op, name, f"contiguous float32 [{rows}, {d}]", x)
    expect(tuple(fc.shape) == (d, parts * d), op, "fc", f"[{d}, {parts * d}]", fc)
    expect(tuple(gate.shape) == (d,), op, "gate", f"contiguous float32 [{d}]", gate)
    return reference.drafter_input(features, embedded, norms, fc, gate, eps)


def _fake_like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


if EXTENSION.module is not None:
    torch.library.register_fake("dynaspec::rms_norm", _fake_like)
    torch.library.register_fake("dynaspec::drafter_input", _fake_like)
