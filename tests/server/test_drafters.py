"""A served answer is the engine's for its seed, whatever drafts, greedy and sampled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.target.load import load
from server.conftest import DEFAULTS

sys.path.insert(0, str(Path(__file__).parents[1] / "drafters"))
from plain_heads import head_shapes, random_tensors
from test_published_heads import WIDTH, eagle1, write

KINDS = ("none", "lookup", "trained", "published", "language-model", "trained+lookup")


def engine_of(kind: str, model: Path, trained: Path, folder: Path) -> Engine:
    target, tokenizer = load(str(model), "float32", "cpu")
    name, _, beside = kind.partition("+")
    if name == "published":
        tensors = random_tensors(head_shapes(False, WIDTH, WIDTH, target.vocab_size, 1))
        name = str(write(folder, eagle1(vocab_size=target.vocab_size), tensors))
    name = {"trained": str(trained), "language-model": str(model)}.get(name, name)
    drafter = load_drafter(name, target, tokenizer)
    return Engine(target, tokenizer, drafter, lookup=LookupDrafter() if beside else None)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_engines(
    kind: str,
    start: Callable[..., Any],
    chat_model_dir: Path,
    tiny_drafter_dir: Path,
    tmp_path: Path,
) -> None:
    engine = engine_of(kind, chat_model_dir, tiny_drafter_dir, tmp_path / "head")
    url = start(engine).url
    messages = [{"role": "user", "content": "ab ab ab"}]
    for seed, temperature in enumerate((0.0, 0.9, 0.0, 1.2)):
        config = replace(
            DEFAULTS,
            max_new_tokens=10,
            sampling=replace(DEFAULTS.sampling, temperature=temperature, seed=seed),
        )
        asked = {"seed": seed, "temperature": temperature, "max_tokens": 10}
        body = {"messages": messages, **asked}
        found = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        text = found["choices"][0]["message"]["content"]
        assert text == engine.complete(engine.tokenizer.chat(messages), config).text
        cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached > 0) == (seed > 0)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
    body = {"prompt": "ab ab", **asked}
    found = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    assert found["choices"][0]["text"] == engine.complete("ab ab", config).text
