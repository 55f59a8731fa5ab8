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

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("drafters", "target")]
from every_setting import every_setting  # noqa: E402
from plain_heads import bundle_for, head_shapes, random_tensors  # noqa: E402
from test_published_heads import WIDTH, eagle1, write  # noqa: E402
from tiny_gguf import write_tiny_gguf  # noqa: E402

KINDS = ("none", "lookup", "trained", "published", "language-model", "trained+lookup")


def engine_of(
    kind: str, model: Path, trained: Path, folder: Path, device: str = "cpu", dtype: str = "float32"
) -> Engine:
    target, tokenizer = load(str(model), dtype, device)
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


def served(url: str, prompt: str, config: Any) -> str:
    body = {"prompt": prompt, "seed": config.sampling.seed}
    found = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    return found["choices"][0]["text"]


def test_every_shortlist_and_tree(
    start: Callable[..., Any], chat_engine: Engine, tmp_path: Path
) -> None:
    bundle_for(chat_engine.target).save_pretrained(tmp_path / "bundle")
    for config in every_setting(tmp_path / "bundle"):
        url = start(chat_engine, defaults=config).url
        assert served(url, "ab ab", config) == chat_engine.complete("ab ab", config).text


@pytest.mark.parametrize("kind", ["lookup", "language-model"])
def test_packed_blocks(kind: str, start: Callable[..., Any], tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_tiny_gguf(model, quantised=True)
    engine = engine_of(kind, model, model, tmp_path / "head", dtype="packed")
    assert "packed" in engine.target.kernels
    url = start(engine).url
    for seed, temperature in enumerate((0.0, 0.9)):
        sampling = replace(DEFAULTS.sampling, temperature=temperature, seed=seed)
        config = replace(DEFAULTS, sampling=sampling)
        body = {"prompt": "ab ab", "seed": seed, "temperature": temperature}
        found = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
        assert found["choices"][0]["text"] == engine.complete("ab ab", config).text


def test_several_devices(
    start: Callable[..., Any], chat_model_dir: Path, tiny_drafter_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    folders = (chat_model_dir, tiny_drafter_dir, tmp_path)
    one, spread = (engine_of("trained", *folders, device=device) for device in ("cpu", "map"))
    assert "device map" in spread.target.kernels
    url = start(spread).url
    for seed in (1, 2):
        config = replace(DEFAULTS, sampling=replace(DEFAULTS.sampling, seed=seed))
        assert served(url, "ab ab", config) == one.complete("ab ab", config).text
