"""Turns with kept caches give the text, the drafts and the random numbers of fresh requests, for
every kind of drafter, on dense and on packed weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dynaspec_cli.chat.dialogue import Dialogue
from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.api import Engine, never
from dynaspec_cli.engine.events import DoneEvent, GenerationResult
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.target.load import load

for folder in ("drafters", "target"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from every_setting import every_setting  # noqa: E402
from plain_heads import bundle_for, head_shapes, random_tensors  # noqa: E402
from test_published_heads import WIDTH, eagle1, write  # noqa: E402
from tiny_gguf import write_tiny_gguf  # noqa: E402

pytestmark = pytest.mark.skipif(
    EXTENSION.module is None, reason="without the extension a row is exact up to rounding only"
)

LAYERS = 8


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A random Llama with layers enough for an EAGLE-3 head's taps."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("dense") / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = LlamaConfig.from_pretrained(tiny_model_dir, num_hidden_layers=LAYERS)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.gguf"
    write_tiny_gguf(path, quantised=True)
    return path


def head(folder: Path, target: Any, deep: bool) -> str:
    """A random published head for ``target``."""
    vocab = target.vocab_size
    shapes = head_shapes(deep, WIDTH, WIDTH, vocab, 1)
    config = eagle1(vocab_size=vocab, **({"draft_vocab_size": vocab} if deep else {}))
    if deep:
        shapes |= {"embed_tokens.weight": (vocab, WIDTH)}
    return str(write(folder, config, random_tensors(shapes)))


KINDS = ("eagle1", "eagle3", "language-model", "lookup", "eagle1+lookup", "language-model+lookup")
CASES = [
    (kind, weights)
    for weights in ("dense", "packed")
    for kind in KINDS
    if (kind, weights) != ("eagle3", "packed")  # two layers have no taps for it
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def engine(request: Any, dense: Path, packed: Path, tmp_path_factory: Any) -> Engine:
    kind, weights = request.param
    model = dense if weights == "dense" else packed
    target, tokenizer = load(str(model), "float32" if weights == "dense" else "packed", "cpu", 1)
    assert target.bit_exact
    assert ("packed" in target.kernels) == (weights == "packed")
    name, _, beside = kind.partition("+")
    if name.startswith("eagle"):
        name = head(tmp_path_factory.mktemp("head") / "d", target, name == "eagle3")
    elif name == "language-model":
        name = str(model)
    drafter = load_drafter(name, target, tokenizer)
    lookup = LookupDrafter() if beside else None
    return Engine(target, tokenizer, drafter, lookup=lookup)


def config(temperature: float, seed: int, new: int, tree: str = "dyspec") -> GenerationConfig:
    return GenerationConfig(
        new,
        sampling=SamplingConfig(temperature=temperature, seed=seed),
        tree=TreeConfig(tree, size=7, depth=3, width=3),
        shortlist=ShortlistConfig("nanospec", 64),
    )


def trace(result: GenerationResult) -> Any:
    """What a result's random numbers and drafts depended on."""
    steps = [(s.drafted, s.accepted, s.depth, s.shortlist_sizes, s.covered) for s in result.steps]
    return result.token_ids, result.text, result.finish_reason, steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_turns_are_fresh_requests(engine: Engine, temperature: float) -> None:
    talk = engine.conversation()
    ids = engine.encode("ab ab ab ab")
    drafted = 0
    for turn in range(4):
        settings = config(temperature, turn, 8 + turn, ("dyspec", "eagle2")[turn % 2])
        *_, done = talk.generate(ids, settings)
        assert isinstance(done, DoneEvent)
        fresh = engine.complete(ids, settings)
        assert trace(done.result) == trace(fresh)
        assert fresh.cached_prompt_tokens == 0
        assert (done.result.cached_prompt_tokens > 0) == (turn > 0)
        drafted += fresh.num_draft_tokens
        # The last turn takes back a part of what was said.
        said = list(done.result.token_ids)
        ids = [*ids, *said, 9, 10] if turn != 2 else [*ids[: len(ids) // 2], 11, 12]
    assert drafted > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dialogues_are_fresh_requests(engine: Engine, temperature: float) -> None:
    """``dynaspec chat`` over the same, with a question taken back; a server's requests go the same
    way (server/jobs.py)."""
    talk = Dialogue(engine, config(temperature, 5, 6))
    for question in ("ab", "cd", "/undo", "ef"):
        if question == "/undo":
            assert talk.take_back() == "cd"
            continue
        seed = 5 + len(talk.results)
        ids = talk._encode([*talk.messages, {"role": "user", "content": question}])
        *_, done = talk.ask(question, never)
        assert isinstance(done, DoneEvent)
        fresh = engine.complete(ids, config(temperature, seed, 6))
        assert trace(done.result) == trace(fresh)


def test_every_shortlist_and_tree(dense: Path, tmp_path: Path) -> None:
    """Turn by turn another one, in one conversation."""
    target, tokenizer = load(str(dense), "float32", "cpu", 1)
    bundle_for(target).save_pretrained(tmp_path / "bundle")
    drafter = load_drafter(head(tmp_path / "head", target, False), target, tokenizer)
    engine = Engine(target, tokenizer, drafter)
    talk, drafted = Dialogue(engine, config(0.0, 0, 1)), 0
    for turn, settings in enumerate(every_setting(tmp_path / "bundle", new=3)):
        talk.config, talk.results = settings, []  # the seed is that of a first answer
        if turn % 6 == 5:
            talk.take_back()
        ids = talk._encode([*talk.messages, {"role": "user", "content": "ab"}])
        *_, done = talk.ask("ab", never)
        assert isinstance(done, DoneEvent)
        assert trace(done.result) == trace(engine.complete(ids, settings))
        drafted += done.result.num_draft_tokens
        if turn % 6 == 5:
            talk.turns.clear()
    assert drafted > 0
