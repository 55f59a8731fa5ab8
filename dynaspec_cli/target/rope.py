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


def rotary_tables(spec: NativeSpec, config: dict[str, Any]) -> dict[str, RotaryTable]:
    """One table for each of ``spec.rope_parameters``; scaled types take ``transformers``' own
    frequencies."""
    return {name: RotaryTable(*_frequencies(spec, config, name)) for name in spec.rope_parameters}


def rotary_table(parameters: dict[str, Any], head_dim: int, max_positions: int) -> RotaryTable:
    """The table of one set of ``rope_parameters`` (transformers' keys, ``rope_theta`` among them),
    of a type in ``native_spec.STATIC_ROPE``. ``max_positions``: the config's, which YaRN takes for
    the original length where its parameters name none."""
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return RotaryTable(_plain_frequencies(float(parameters["rope_theta"]), head_dim), 1.0)
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_parameters=dict(parameters),
    )
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return RotaryTable(inv_freq, float(scaling))


def _plain_frequencies(theta: float, head_dim: int) -> Tensor:
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))


def _frequencies(spec: NativeSpec, config: dict[str, Any], name: str) -> tuple[Tensor, float]:
    parameters = spec.rope_parameters[name]
    kind = parameters.get("rope_type", "default")
    dim = spec.shapes[0].head_dim
    if kind == "default":
        return _plain_frequencies(float(parameters["rope_theta"]), dim), 1.0
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
