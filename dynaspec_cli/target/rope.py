"""Rotary position embeddings: tables of cos and sin that grow with the text."""

from __future__ import annotations

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
        self._inv_freq = inv_freq.float()
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
            angles = more[:, None] * self._inv_freq
            angles = torch.cat((angles, angles), -1)
            cos = torch.cat((cos, angles.cos() * self._scaling))
            sin = torch.cat((sin, angles.sin() * self._scaling))
            self._table = (cos, sin)
        return cos[positions], sin[positions]


def rotary_tables(spec: NativeSpec, config: dict[str, Any]) -> dict[str, RotaryTable]:
    """One table for each of ``spec.rope_parameters``; scaled types take ``transformers``' own
    frequencies."""
    return {name: RotaryTable(*_frequencies(spec, config, name)) for name in spec.rope_parameters}


def _frequencies(spec: NativeSpec, config: dict[str, Any], name: str) -> tuple[Tensor, float]:
    parameters = spec.rope_parameters[name]
    kind = parameters.get("rope_type", "default")
    dim = spec.shapes[0].head_dim
    if kind == "default":
        exponents = torch.arange(0, dim, 2, dtype=torch.float) / dim
        return 1.0 / (float(parameters["rope_theta"]) ** exponents), 1.0
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {
        key: value
        for key, value in config.items()
        if key not in ("model_type", "transformers_version")
    }
    full = AutoConfig.for_model(spec.family, **fields)
    by_layer = {} if name == "all" else {"layer_type": name}
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](full, torch.device("cpu"), **by_layer)
    return inv_freq, float(scaling)
