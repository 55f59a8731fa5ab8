"""What the decoder layer refuses."""

from __future__ import annotations

import pytest
import torch
from decoder_cases import Shape, layer_arguments, replaced

from dynaspec_cli.ops import decoder_layer

BAD = {
    "x dtype": ("x", lambda a: a["x"].double(), r"x: expected .* got"),
    "x shape": ("x", lambda a: a["x"][0], r"x: expected .* got"),
    "cache too short": ("cache_len", lambda a: 5, r"cache_len|k_cache"),
    "cache dtype": ("v_cache", lambda a: a["v_cache"].bfloat16(), r"v_cache: expected .* got"),
    "cos": ("cos", lambda a: a["cos"][:, :4], r"cos: expected .* got"),
    "positions": (
        "positions",
        lambda a: a["positions"] - 1,
        r"positions: expected at least .* got 3",
    ),
    "positions dtype": ("positions", lambda a: a["positions"].int(), r"positions: expected .* got"),
    "mask shape": ("mask", lambda a: a["mask"][:2], r"mask: expected .* got"),
    "mask diagonal": ("mask", lambda a: a["mask"].triu(1), r"mask: expected every row"),
    "heads": ("num_heads", lambda a: 3, r"num_heads: expected .* got 3"),
    "head_dim": ("head_dim", lambda a: 7, r"head_dim: expected .* got 7"),
    "window": ("window", lambda a: -1, r"window: expected .* got -1"),
    "softcap": ("softcap", lambda a: -1.0, r"softcap: expected .* got -1"),
    "scale": ("scale", lambda a: float("nan"), r"scale: expected .* got nan"),
    "activation": ("activation", lambda a: "relu", r"activation: expected .* got relu"),
    "too few formats": (
        "weights",
        lambda a: replaced(a["weights"], formats=(-1, -1, -1)),
        r"formats: expected one for each matrix",
    ),
    "too many formats": (
        "weights",
        lambda a: replaced(a["weights"], formats=(-1,) * 5),
        r"formats: expected one for each matrix, got 1 too many",
    ),
    "no gate": (
        "weights",
        lambda a: replaced(a["weights"], gate_up=()),
        r"gate_up: expected an even number of rows, got 0",
    ),
    "qkv": (
        "weights",
        lambda a: replaced(a["weights"], qkv=(torch.zeros(4, 4),)),
        r"qkv: expected .* got",
    ),
    "norm": (
        "weights",
        lambda a: replaced(a["weights"], input_norm=torch.zeros(48).half()),
        r"input_norm: expected",
    ),
    "one norm": (
        "weights",
        lambda a: replaced(a["weights"], k_norm=torch.empty(0)),
        r"k_norm: expected .* both",
    ),
    "bias": (
        "weights",
        lambda a: replaced(a["weights"], qkv_bias=torch.zeros(3)),
        r"qkv_bias: expected .* got",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    name, change, message = BAD[case]
    arguments = layer_arguments(Shape())
    arguments[name] = change(arguments)
    with pytest.raises(ValueError, match=message):
        decoder_layer(**arguments)
