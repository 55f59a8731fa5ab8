"""Rotary position embeddings: tables of cos and sin that grow with the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.target.native_spec import NativeSpec

BLOCK = 1024
"""Positions added at a time."""


class RotaryTable:
    """cos and sin float32 [positions, head_dim] of one set of rotary parameters, both halves alike
    (``rotate_half`` form).

    Angles are ``position * inv_freq`` in float32, as in ``transformers``; ``scaling`` multiplies
    both (YaRN).
    """

    def __init__(self, inv_freq: Tensor, scaling: float) -> None:
        self.inv_freq = inv_freq.float()
        self._scaling = scaling
        empty = torch.empty(0, 2 * inv_freq.numel())
        self._table = (empty, empty)

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) float32 [n, head_dim] of positions int64 [n]."""
        needed = int(positions.max()) + 1
        # The table is the model's, not a request's: it is replaced as a whole, so that a request
        # that is interrupted here, or another thread's, leaves and finds it in one piece.
        cos, sin = self._table
        have = cos.shape[0]
        if needed > have:
            more = torch.arange(have, -(-needed // BLOCK) * BLOCK, dtype=torch.float32)
            angles = more[:, None] * self.inv_freq
            angles = torch.cat((angles, angles), -1)
            cos = torch.cat((cos, angles.cos() * self._scaling))
            sin = torch.cat((sin, angles.sin() * self._scaling))
            self._table = (cos, sin)
        return cos[positions], sin[positions]


def rotary_tables(spec: NativeSpec) -> dict[str, RotaryTable]:
    """One table for each of ``spec.rope_parameters``."""
    size = spec.shapes[0].head_dim
    return {
        name: RotaryTable(*frequencies(parameters, size))
        for name, parameters in spec.rope_parameters.items()
    }


def frequencies(parameters: dict[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """(inverse frequencies float32 [head_dim / 2], factor of cos and sin) of the rotary types that
    do not depend on the length of the text (``native_spec.STATIC_ROPE``), to the bit as
    ``transformers`` computes them."""
    base = float(parameters["rope_theta"])
    powers = base ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim)
    return FORMS[parameters.get("rope_type", "default")](parameters, powers, base)


Parameters = dict[str, Any]


def _default(parameters: Parameters, powers: Tensor, base: float) -> tuple[Tensor, float]:
    return 1.0 / powers, 1.0


def _linear(parameters: Parameters, powers: Tensor, base: float) -> tuple[Tensor, float]:
    """Positions are divided by one factor (arXiv 2306.15595)."""
    return 1.0 / powers / parameters["factor"], 1.0


def _llama3(parameters: Parameters, powers: Tensor, base: float) -> tuple[Tensor, float]:
    """Llama 3.1: long wavelengths are stretched by the factor, short ones stay, those between are
    blended."""
    inv_freq, factor = 1.0 / powers, parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    context = parameters["original_max_position_embeddings"]
    waves = 2 * math.pi / inv_freq
    stretched = torch.where(waves > context / low, inv_freq / factor, inv_freq)
    share = (context / waves - low) / (high - low)
    blended = (1 - share) * stretched / factor + share * stretched
    between = (waves >= context / high) & (waves <= context / low)
    return torch.where(between, blended, stretched), 1.0


def _yarn(parameters: Parameters, powers: Tensor, base: float) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071, sections 3.2 to 3.4): a ramp over the dimensions from frequencies
    that stay to such that are divided by the factor; cos and sin grow by the attention factor."""
    factor, half = parameters["factor"], powers.numel()
    context = parameters["original_max_position_embeddings"]

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    def dimension(rotations: float) -> float:
        return half * math.log(context / (rotations * 2 * math.pi)) / math.log(base)

    attention = parameters.get("attention_factor")
    over, under = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if attention is None:
        attention = scale(over) / scale(under) if over and under else scale(1.0)
    low = dimension(parameters.get("beta_fast") or 32)
    high = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001  # a step: no division by zero
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept, float(attention)


def _factors(parameters: Parameters, powers: Tensor, base: float) -> tuple[Tensor, float]:
    """LongRoPE whose short and long factors are the same: each frequency has its own divisor."""
    divisors = torch.tensor(parameters["short_factor"], dtype=torch.float32)
    return 1.0 / (divisors * powers), float(parameters["attention_factor"])


FORMS: dict[str, Callable[[Parameters, Tensor, float], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _factors,
}
"""By ``rope_type``."""
