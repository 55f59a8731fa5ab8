"""Sampling in vLLM with drafts of the plugin: the distribution stays the target's.

vLLM's rejection sampler takes a drafted token x with probability p(x), as the draft is no draw, and
else draws from p without x.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import folders
import pytest
import torch
from engine import run, speculative

PROMPT = [5, 17, 300, 42, 7]
DRAWS, NEW, TEMPERATURE = 3000, 4, 0.4
WIDTH = 8
"""Tokens that a text is continued with in the law's tree; the others are one cell together."""
LEAST = 8.0
"""Expected answers of a cell."""


def law(folder) -> dict[tuple[int, ...], float]:
    """Probabilities of the likely answers of NEW tokens, by the model's own passes."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NEW):
        texts = list(found)
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *text] for text in texts])).logits[:, -1]
        values, ids = (logits / TEMPERATURE).softmax(-1).topk(WIDTH)
        grown = {}
        for text, row, tokens in zip(texts, values.tolist(), ids.tolist(), strict=True):
            for p, token in zip(row, tokens, strict=True):
                grown[(*text, token)] = found[text] * p
        found = {text: p for text, p in grown.items() if p * DRAWS > LEAST}
    return found


def upper_tail(chi_square: float, freedom: int) -> float:
    """P(a chi-square of so many degrees of freedom is larger), by Wilson and Hilferty."""
    scale = 2 / (9 * freedom)
    z = ((chi_square / freedom) ** (1 / 3) - (1 - scale)) / math.sqrt(scale)
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["language_model", "eagle1"])
def test_the_distribution_is_the_targets(kind, tmp_path):
    """Joint counts of several tokens against their probabilities in closed form."""
    target = folders.target(tmp_path / "target")
    folder = getattr(folders, kind)(tmp_path / "draft")
    found = run(
        tmp_path,
        model=str(target),
        prompts=[PROMPT] * DRAWS,
        new_tokens=NEW,
        sampling={"temperature": TEMPERATURE, "ignore_eos": True},
        mend_expansion=True,
        speculative_config=speculative(kind, folder),
    )
    assert "error" not in found, found["error"][-3000:]
    if kind == "language_model":
        assert found["tau"] > 1.1  # some drafts are taken, and not all: both branches are met
    assert found["tau"] < NEW
    expected, counts = law(target), Counter(map(tuple, found["ids"]))
    cells = [(counts[text], p) for text, p in expected.items()]
    cells.append((DRAWS - sum(count for count, _ in cells), 1 - sum(expected.values())))
    assert len(cells) >= 16
    chi_square = sum((count - DRAWS * p) ** 2 / (DRAWS * p) for count, p in cells)
    assert upper_tail(chi_square, len(cells) - 1) > 1e-4


def test_the_test_would_see_a_shift():
    """A tenth of the mass moved from the likeliest answer to the next is far beyond the bound."""
    p = dict(zip(product(range(2), repeat=NEW), torch.ones(16).softmax(-1).tolist(), strict=True))
    first, second = list(p)[:2]
    moved = {**p, first: p[first] * 0.5, second: p[second] * 1.5}
    chi_square = sum(DRAWS * (moved[text] - p[text]) ** 2 / p[text] for text in p)
    assert upper_tail(chi_square, len(p) - 1) < 1e-4
