"""A language model's drafts leave the target's law alone: the engine's loop with real shortlists
over the drafter's own head, every random outcome; then seeded runs of a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_toys import Context, ToyModel, distance, target_law
from test_chi_square import FAMILY, p_value
from test_law import SAMPLERS
from torch import Tensor
from toy_target import ToyOutput, ToyState, ToyTarget, decoded_law

from dynaspec_cli.config import SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.language_model import LanguageModelDrafter
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.protocols import Shortlist
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.load import load
from dynaspec_cli.tree.registry import TREES, create_tree
from dynaspec_cli.weights.weight import Weight, dense

EXACT = 1e-7
"""The drafter's probabilities are float32."""

SAMPLING_TREES = [name for name in TREES if name != "auto"]
SHORTLISTS = ("full", "nanospec", "map")
PROMPT = (0, 2)


class ToyLanguageModel(ToyTarget):
    """The toy drafter as a model: its rows are its logits, its LM head the identity."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__(model)
        self.head = LMHead(dense(torch.eye(model.vocab)))

    def head_weight(self) -> Weight:
        return self.head.weight

    def norm(self, features: Tensor) -> Tensor:
        return features

    def verify(self, state: ToyState, tree: Any, start: int = 0) -> ToyOutput:
        output = super().verify(state, tree, start)
        rows = [self.model.draft_logits(context) for context in state.rows[start:]]
        output.features = torch.stack(rows).float()
        return output


class Whole(ToyTarget):
    """The toy target with what shortlists ask of one."""

    def norm(self, features: Tensor) -> Tensor:
        raise AssertionError("a drafter with its own head reads no rows of the target's")


@pytest.fixture(scope="module")
def token_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "map.json"
    path.write_text(json.dumps([2, 0]), encoding="utf-8")
    return path


def chosen(name: str, token_map: Path, drafter: LanguageModelDrafter, target: Any) -> Shortlist:
    config = ShortlistConfig(
        str(token_map) if name == "map" else name, 2 if name == "nanospec" else None
    )
    return shortlists.create(config, target, head=drafter.head, depth=2)


def law_of(
    tree: str, sampling: SamplingConfig, shortlist: str, token_map: Path, length: int, vocab: int
) -> tuple[Any, Any, float]:
    """(emitted law, the target's, accepted draft tokens)."""
    model = ToyModel(vocab=vocab, shortlist_size=2, seed=13)
    drafter = LanguageModelDrafter(ToyLanguageModel(model), Whole(model))
    head = chosen(shortlist, token_map, drafter, Whole(model))
    if tree == "specinfer":
        config = TreeConfig(tree, size=4, depth=2, width=2, expansion=(2, 1))
    else:
        config = TreeConfig(tree, size=3, depth=2, width=2)

    def make(target: ToyTarget, script: Any) -> Speculation:
        return Speculation(drafter, head, create_tree(config, sampling, source=script))

    law, drafts = decoded_law(model, PROMPT, make, sampling, length)
    return law, target_law(model, PROMPT, sampling, length), drafts


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_joint_law_by_sampler(tree: str, sampler: str, token_map: Path) -> None:
    law, expected, drafts = law_of(tree, SAMPLERS[sampler], "full", token_map, 2, 3)
    assert distance(law, expected) < EXACT
    assert drafts > 0.2


@pytest.mark.parametrize("shortlist", SHORTLISTS[1:])
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_joint_law_by_shortlist(tree: str, shortlist: str, token_map: Path) -> None:
    law, expected, drafts = law_of(tree, SAMPLERS["plain"], shortlist, token_map, 2, 4)
    assert distance(law, expected) < EXACT
    assert drafts > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_joint_law_of_three_tokens(
    tree: str, sampler: str, shortlist: str, token_map: Path
) -> None:
    law, expected, _ = law_of(tree, SAMPLERS[sampler], shortlist, token_map, 3, 3)
    assert distance(law, expected) < EXACT


# -- a tiny model with its caches and kernels -------------------------------------------------

TEXT = (5, 17, 40, 41)
SAMPLER = SamplingConfig(temperature=1.5, top_k=4, top_p=0.95)


@pytest.fixture(scope="module")
def parts(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """(target, drafter, the target as transformers loads it); the drafter is the target with noise
    on its weights, so that drafts are accepted often and rejected often."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    noisy = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in noisy.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += 0.1 * weight.std().nan_to_num() * noise
    folder = tmp_path_factory.mktemp("noisy")
    noisy.save_pretrained(folder)
    target, _ = load(str(tiny_model_dir), "float32", "cpu")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model_dir / name).read_bytes())
    return target, LanguageModelDrafter(load(str(folder), "float32", "cpu")[0], target), model


def text_of(
    parts: tuple[Any, Any, Any],
    shortlist: Shortlist,
    tree: TreeConfig,
    sampling: SamplingConfig,
    length: int,
) -> tuple[Context, int]:
    """(the first new tokens, draft tokens accepted on the way)."""
    target, drafter, _ = parts
    emissions = decode(
        target,
        torch.tensor(TEXT),
        len(TEXT) + length + tree.depth + 1,
        sampling,
        GeneratorSource(sampling.seed),
        Speculation(drafter, shortlist, create_tree(tree, sampling)),
    )
    tokens: Context = ()
    accepted = 0
    for emission in emissions:
        tokens += tuple(emission.token_ids)
        accepted += emission.step.accepted if emission.step else 0
        if len(tokens) >= length:
            break
    return tokens[:length], accepted


@pytest.fixture(scope="module")
def shortlist_of(parts: tuple[Any, Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    target, drafter, _ = parts
    path = tmp_path_factory.mktemp("maps") / "map.json"
    ids = torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(0))[:250]
    path.write_text(json.dumps(ids.tolist()), encoding="utf-8")

    def make(name: str) -> Shortlist:
        config = ShortlistConfig(
            str(path) if name == "map" else name, 64 if name == "nanospec" else None
        )
        return shortlists.create(config, target, head=drafter.head, depth=4)

    return make


@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("tree", TREES)
def test_greedy_tokens_are_transformers(
    parts: tuple[Any, Any, Any], shortlist_of: Any, tree: str, shortlist: str
) -> None:
    length = 48
    output = parts[2].generate(
        torch.tensor([TEXT]), max_new_tokens=length, do_sample=False, eos_token_id=None
    )
    config = TreeConfig(tree, size=8, depth=4, width=3)
    tokens, accepted = text_of(parts, shortlist_of(shortlist), config, SamplingConfig(0.0), length)
    assert tokens == tuple(output[0, len(TEXT) :].tolist())
    assert accepted >= 8


def joint_law(target: Any, length: int) -> dict[Context, float]:
    """Closed form: p of every sequence of new tokens, by plain passes over each prefix."""
    law: dict[Context, float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for prefix, chance in law.items():
            state = target.begin(len(TEXT) + length + 1)
            output = target.prefill(state, torch.tensor((*TEXT, *prefix)))
            p = probabilities(output.logits()[-1:], SAMPLER)[0]
            for token in p.nonzero().squeeze(1).tolist():
                longer[(*prefix, token)] = chance * float(p[token])
        law = longer
    return law


@pytest.mark.slow
@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_sampled_law_of_three_tokens(
    parts: tuple[Any, Any, Any], shortlist_of: Any, tree: str, shortlist: str
) -> None:
    """Pearson's test over joint sequences, one family-wise error for all trees and shortlists."""
    runs = 1500
    law = joint_law(parts[0], 3)
    config = TreeConfig(tree, size=6, depth=3, width=2)
    chosen_head = shortlist_of(shortlist)
    counts: Counter[Context] = Counter()
    accepted = 0
    for seed in range(runs):
        sampling = SamplingConfig(SAMPLER.temperature, SAMPLER.top_k, SAMPLER.top_p, 0.0, seed)
        tokens, hits = text_of(parts, chosen_head, config, sampling, 3)
        counts[tokens] += 1
        accepted += hits
    assert accepted > 0.1 * runs
    assert p_value(counts, law) > FAMILY / (len(SAMPLING_TREES) * len(SHORTLISTS))
