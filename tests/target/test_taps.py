"""Residual streams between layers, which EAGLE-3 heads read, against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree

FAMILIES = ("gemma3", "llama", "llama3", "qwen2", "qwen3")
PATHS = ("native", "static", "transformers")
IDS = [5, 17, 40, 41, 3, 88, 12, 60, 9, 77, 23, 54]


@pytest.fixture(
    params=[(family, path) for family in FAMILIES for path in PATHS], ids=lambda p: "-".join(p)
)
def pair(request: pytest.FixtureRequest, make_target: Any, hf_model: Any) -> tuple[Any, Any]:
    family, path = request.param
    return make_target(family, path), hf_model(family)


def streams(model: Any, ids: list[int]) -> list[torch.Tensor]:
    """What enters each decoder layer, and what leaves the last: transformers' hidden states, but
    for its last one, which is normed."""
    left: list[torch.Tensor] = []
    last = model.model.layers[-1]

    def catch(module: Any, args: Any, output: Any) -> None:
        left.append((output[0] if isinstance(output, tuple) else output).reshape(len(ids), -1))

    hook = last.register_forward_hook(catch)
    try:
        with torch.inference_mode():
            passed = model(
                input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False
            )
    finally:
        hook.remove()
    return [hidden[0] for hidden in passed.hidden_states[:-1]] + left


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, atol=2e-4, rtol=2e-4)


def test_taps_are_layer_inputs(pair: tuple[Any, Any]) -> None:
    """In the order asked for; the number after the last layer is what the final norm reads."""
    target, model = pair
    expected = streams(model, IDS)
    assert len(expected) == target.num_layers + 1
    taps = tuple(range(target.num_layers + 1))
    output = target.prefill(target.begin(32, taps), torch.tensor(IDS))
    close(output.taps, torch.cat(expected, 1))
    close(output.features, expected[-1])
    backwards = target.prefill(target.begin(32, taps[::-1]), torch.tensor(IDS))
    close(backwards.taps, torch.cat(expected[::-1], 1))
    assert target.prefill(target.begin(32), torch.tensor(IDS)).taps is None


def test_taps_of_a_tree_and_of_pieces(pair: tuple[Any, Any], monkeypatch: Any) -> None:
    target, model = pair
    for module in ("native_target", "transformers_target"):
        monkeypatch.setattr(f"dynaspec_cli.target.{module}.PREFILL_ROWS", 4)
    monkeypatch.setattr("dynaspec_cli.target.static.target.PREFILL_ROWS", (4, 4))
    taps = (1, target.num_layers)
    state = target.begin(32, taps)
    close(
        target.prefill(state, torch.tensor(IDS[:9])).taps,
        torch.cat([streams(model, IDS[:9])[tap] for tap in taps], 1),
    )
    tree = DraftTree(torch.tensor([9, 77, 23, 54]), torch.tensor([-1, 0, 0, 2]))
    output = target.verify(state, tree)
    for row, path in enumerate(([9], [9, 77], [9, 23], [9, 23, 54])):
        expected = streams(model, IDS[:9] + path)
        close(output.taps[row], torch.cat([expected[tap][-1] for tap in taps]))
    target.commit(state, torch.tensor([0, 2]))
    output = target.verify(state, DraftTree(torch.tensor([31]), torch.tensor([-1])))
    expected = streams(model, [*IDS[:9], 9, 23, 31])
    close(output.taps[0], torch.cat([expected[tap][-1] for tap in taps]))


def test_taps_do_not_change_logits(pair: tuple[Any, Any]) -> None:
    target, _ = pair
    ids = torch.tensor(IDS)
    with_taps = target.prefill(target.begin(32, (0, 2)), ids)
    without = target.prefill(target.begin(32), ids)
    assert torch.equal(with_taps.logits(), without.logits())


def test_taps_outside_the_target_are_refused(pair: tuple[Any, Any]) -> None:
    target, _ = pair
    for tap in (-1, target.num_layers + 1):
        with pytest.raises(DynaSpecError, match=rf"enters layer {tap}, but .* layers"):
            target.begin(32, (tap,))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_rows_are_the_stored_ones(
    family: str, path: str, make_target: Any, hf_model: Any
) -> None:
    """Gemma's factor belongs to ``embed``, not to the table."""
    target, ids = make_target(family, path), torch.tensor([3, 96, 0])
    table = hf_model(family).get_input_embeddings().weight.detach()
    assert torch.equal(target.embedding_rows(ids).float(), table[ids])
    factor = 32**0.5 if family == "gemma3" else 1.0
    torch.testing.assert_close(target.embed(ids).float(), table[ids] * factor)
