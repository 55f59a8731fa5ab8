"""The weights of one decoder layer, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dynaspec_cli.ops.formats import DENSE


class LayerWeights(NamedTuple):
    """What ``ops.decoder_layer`` multiplies. Norms are float32 with any "+1" already added (Gemma);
    one that a family lacks is empty. Matrices are float32, bf16 or fp16 [rows, columns], or packed
    rows; ``formats`` (ops/formats.py) has one number for each: of ``qkv``, ``out``, ``gate_up``,
    ``down``. The parts of ``qkv`` and ``gate_up`` follow each other, up to three."""

    input_norm: Tensor  # [d]
    qkv: tuple[Tensor, ...]  # [(heads + 2 kv_heads) * head_dim, d] together
    qkv_bias: Tensor  # or empty
    q_norm: Tensor  # [head_dim] or empty
    k_norm: Tensor  # [head_dim] or empty
    out: Tensor  # [d, heads * head_dim]
    post_attention_norm: Tensor  # [d] or empty: of the attention's output, before the sum (Gemma)
    mlp_norm: Tensor  # [d]: norm before the MLP
    gate_up: tuple[Tensor, ...]  # [2 * intermediate, d] together
    down: Tensor  # [d, intermediate]
    post_mlp_norm: Tensor  # [d] or empty: of the MLP's output, before the sum (Gemma)
    formats: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that a pass reads."""
        fields: tuple[Tensor | tuple[Tensor, ...], ...] = self[:-1]
        parts = [(part,) if isinstance(part, Tensor) else part for part in fields]
        return sum(tensor.nbytes for part in parts for tensor in part)


LAYER_WEIGHTS = LayerWeights._fields[:-1]


def dense_layer(weights: Sequence[Tensor]) -> LayerWeights:
    """Of tensors in the order of ``LAYER_WEIGHTS``, each matrix in one part and in its dtype."""
    named: dict[str, Any] = dict(zip(LAYER_WEIGHTS, weights, strict=True))
    named |= {name: (named[name],) for name in ("qkv", "gate_up")}
    return LayerWeights(**named, formats=(DENSE,) * 4)
