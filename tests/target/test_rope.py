"""Rotary frequencies are those of transformers to the bit; the table of them grows with the text
and is whole whatever happens while it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynaspec_cli.target import rope


def test_a_request_interrupted_while_the_table_grows_leaves_it_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inv_freq = torch.tensor([1.0, 0.1])
    table = rope.RotaryTable(inv_freq, 1.5)
    table.rows(torch.arange(rope.BLOCK))
    real, calls = torch.cat, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:  # the angles, cos, and then sin
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(rope.torch, "cat", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.rows(torch.tensor([rope.BLOCK + 5]))
    monkeypatch.undo()
    at = torch.tensor([3, rope.BLOCK - 1, rope.BLOCK, rope.BLOCK + 5, 3 * rope.BLOCK])
    angle = at.float()[:, None] * inv_freq
    angle = torch.cat((angle, angle), -1)
    cos, sin = table.rows(at)
    torch.testing.assert_close(cos, angle.cos() * 1.5)
    torch.testing.assert_close(sin, angle.sin() * 1.5)


LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 4096}
FACTORS = [1.0 + 0.37 * i for i in range(32)]
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 8.0},
    "llama3": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192},
    "llama3, short": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 64},
    "yarn": {**YARN, "factor": 4.0},
    "yarn, no factor of attention": {**YARN, "factor": 16.0, "attention_factor": 1.0},
    "yarn, betas": {**YARN, "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, mscale": {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.2},
    "yarn, not truncated": {**YARN, "factor": 4.0, "truncate": False},
    "yarn, a step": {**YARN, "factor": 4.0, "beta_fast": 1.0, "truncate": False},
    "factors": {
        "rope_type": "longrope",
        "short_factor": FACTORS,
        "long_factor": FACTORS,
        "attention_factor": 1.25,
        "factor": 1.0,
        "original_max_position_embeddings": 4096,
    },
}


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies_are_those_of_transformers(name: str, base: float) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**PARAMETERS[name], "rope_theta": base}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters=dict(parameters),
    )
    wanted, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    got, factor = rope.frequencies(parameters, 64)
    assert torch.equal(got, wanted)
    assert factor == scaling
