"""The estimate of what graphs take covers what passes and rounds hold, and is no multiple of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.device.round import Round
from dynaspec_cli.device.sizes import TOKEN_BYTES, round_bytes
from dynaspec_cli.target.static import graphs
from dynaspec_cli.target.static.sizes import CAPTURED_ROWS, LOGIT_BYTES, extra_bytes

from .live import most_bytes
from .parts import SAMPLING, drafting, parts_on, run
from .shortlists import a_shortlist

VOCAB, WIDTH, LAYERS = 12000, 16, 1


def test_captured_passes_and_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest vocabulary for its size that a model can have, the largest tree, every law."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    parts = parts_on(tmp_path, torch.device("cpu"), kind="static")
    held = {"pass": 0, "round": 0}

    def measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            out: list[Any] = []
            most = most_bytes(lambda: out.append(function(*args)))
            held[name] = max(held[name], most)
            return out[0]

        return call

    monkeypatch.setattr(graphs, "step", measured("pass", graphs.step))
    monkeypatch.setattr(Round, "__call__", measured("round", Round.__call__))
    for tree, law in (("eagle2", "greedy"), ("dyspec", "sampled"), ("dyspec", "filtered")):
        made = a_shortlist("full", parts.target)
        shape = TreeConfig(tree, size=60, depth=6, width=10)
        run(parts, made, shape, SAMPLING[law], 2, drafting(parts, made), room=500)
    assert held["pass"] < extra_bytes(LAYERS, WIDTH, 16, VOCAB, 4)
    assert held["pass"] > 0.6 * CAPTURED_ROWS[-1] * VOCAB * LOGIT_BYTES
    assert held["round"] < round_bytes(WIDTH, VOCAB, 4)
    assert held["round"] > 0.6 * VOCAB * TOKEN_BYTES
