"""A worker's line is the engine's own result, whatever drafts."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dynaspec_cli.batch import workers
from dynaspec_cli.batch.answer import BatchRequest, answer
from dynaspec_cli.batch.prompts import BatchPrompt
from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.engine.api import never

from .test_many_prompts import CONFIG, lasting

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("drafters", "target")]
from every_setting import every_setting  # noqa: E402
from plain_heads import bundle_for, head_shapes, random_tensors  # noqa: E402
from test_published_heads import WIDTH, eagle1, write  # noqa: E402
from tiny_gguf import write_tiny_gguf  # noqa: E402

KINDS = ("none", "lookup", "trained", "published", "language-model", "trained+lookup", "packed")


def request_of(kind, model, trained, folder, temperature=0.8):
    """``packed``: a GGUF file's blocks, drafted by lookup."""
    name, plus, beside = kind.partition("+")
    if name == "published":
        tensors = random_tensors(head_shapes(False, WIDTH, WIDTH, VOCAB, 1))
        name = str(write(folder / "head", eagle1(vocab_size=VOCAB), tensors))
    if name == "packed":
        name, model = "lookup", folder / "model.gguf"
        write_tiny_gguf(model, quantised=True)
    name = {"trained": str(trained), "language-model": str(model)}.get(name, name)
    return BatchRequest(
        replace(
            CONFIG,
            sampling=SamplingConfig(temperature=temperature, seed=5),
            tree=TreeConfig(size=6, depth=3),
        ),
        model=str(model),
        dtype="packed" if kind == "packed" else "float32",
        device="cpu",
        threads=1,
        drafter=f"{name}{plus}{beside}",
    )


VOCAB = 400
"""Of the tiny model."""
PROMPTS = [BatchPrompt(i, i, text="ab " * i) for i in (2, 3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_workers_lines_are_the_engines(
    kind, temperature, chat_model_dir, tiny_drafter_dir, tmp_path
):
    request = request_of(kind, chat_model_dir, tiny_drafter_dir, tmp_path, temperature)
    engine = request.load()
    own = {prompt.id: lasting(answer(engine, prompt, request)) for prompt in PROMPTS}
    found = {line["id"]: lasting(line) for line in workers.run(1, PROMPTS, request, never)}
    assert found == own


def test_every_shortlist_and_tree(chat_model_dir, tiny_drafter_dir, tmp_path):
    """As a worker or an actor is told of them, and answers."""
    request = request_of("trained", chat_model_dir, tiny_drafter_dir, tmp_path)
    engine = request.load()
    bundle_for(engine.target).save_pretrained(tmp_path / "bundle")
    for config in every_setting(tmp_path / "bundle"):
        told = pickle.loads(pickle.dumps(replace(request, config=config)))
        line = answer(engine, PROMPTS[1], told)
        own = engine.complete(PROMPTS[1].text, config).to_json()
        assert lasting(line) == lasting({"id": PROMPTS[1].id, **own})


def test_a_prompt_may_have_a_temperature_of_its_own(chat_model_dir, tiny_drafter_dir, tmp_path):
    request = request_of("trained", chat_model_dir, tiny_drafter_dir, tmp_path, temperature=0.8)
    engine = request.load()
    for temperature in (0.0, 1.5):
        prompt = replace(PROMPTS[0], temperature=temperature)
        alone = replace(
            request,
            config=replace(
                request.config, sampling=replace(request.config.sampling, temperature=temperature)
            ),
        )
        assert lasting(answer(engine, prompt, request)) == lasting(
            answer(engine, PROMPTS[0], alone)
        )
