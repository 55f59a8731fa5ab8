"""The real decode loop on a tiny model: target with its KV cache, shortlist, tree, verification,
seeds.

The drafter is the target itself with noise on its features, so that drafts are accepted often and
rejected often; its features are recomputed from the token sequence, so a wrong ``parents`` or
``source`` of a frontier would show as a collapse of acceptance.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.head import target_head
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.protocols import (
    Committed,
    DrafterHead,
    DraftRows,
    Frontier,
    Shortlist,
    Target,
)
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.target.load import load
from dynaspec_cli.tree.registry import TREES, create_tree

FAMILY = 1e-3
PROMPT = (5, 17, 40, 41)
SHORTLISTS = ("full", "nanospec", "map")
SAMPLING_TREES = [name for name in TREES if name != "auto"]


class NoisyTarget:
    """A drafter that knows the target's features up to noise (a function of the context)."""

    def __init__(self, target: Target, noise: float) -> None:
        self.target, self.noise = target, noise
        self.memo: dict[tuple[int, ...], Tensor] = {}

    def feature(self, context: tuple[int, ...]) -> Tensor:
        if context not in self.memo:
            state = self.target.begin(len(context) + 1)
            exact = self.target.prefill(state, torch.tensor(context)).features[-1].float()
            generator = torch.Generator().manual_seed(hash(context) % (1 << 63))
            error = torch.randn(exact.shape, generator=generator) * exact.std()
            self.memo[context] = exact + self.noise * error
        return self.memo[context]

    name, folder, taps = "noisy", None, ()

    @property
    def head(self) -> DrafterHead:
        return target_head(self.target)

    def describe(self) -> dict[str, Any]:
        return {"drafter_kind": "noisy"}

    def begin(self, prompt: Tensor, max_length: int) -> Any:
        return {"context": (int(prompt[0]),), "rows": [], "features": None}

    def extend(self, state: Any, committed: Committed) -> DraftRows:
        state["context"] += tuple(committed.tokens.tolist())
        state["rows"] = []
        state["features"] = self.feature(state["context"])[None]
        return DraftRows(self.target.norm(state["features"]))

    def step(self, state: Any, frontier: Frontier) -> DraftRows:
        rows = []
        features = state["features"][frontier.source]
        for feature, token, parent in zip(
            features, frontier.tokens.tolist(), frontier.parents.tolist(), strict=True
        ):
            above = state["context"] if parent < 0 else state["rows"][parent]
            assert torch.equal(feature, self.feature(above))
            rows.append((*above, token))
        state["rows"] += rows
        state["features"] = torch.stack([self.feature(row) for row in rows])
        return DraftRows(self.target.norm(state["features"]))

    def observe(self, state: Any, tree: Any, path: Tensor) -> None:
        pass

    def rewind(self, state: Any, prompt: Tensor, max_length: int) -> int:
        return 0


@pytest.fixture(scope="module")
def target(tiny_model_dir: Path) -> Target:
    return load(str(tiny_model_dir), "float32", "cpu")[0]


@pytest.fixture(scope="module")
def drafter(target: Target) -> NoisyTarget:
    return NoisyTarget(target, noise=0.25)


@pytest.fixture(scope="module")
def shortlist_of(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("maps")
    ids = torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(0))[:200]
    (folder / "map.json").write_text(json.dumps(ids.tolist()), encoding="utf-8")

    def make(name: str) -> Shortlist:
        if name == "map":
            return shortlists.create(ShortlistConfig(str(folder / "map.json")), target)
        return shortlists.create(ShortlistConfig(name, 64 if name == "nanospec" else None), target)

    return make


def generate(
    target: Target,
    drafter: NoisyTarget | None,
    shortlist: Shortlist | None,
    tree: TreeConfig,
    sampling: SamplingConfig,
    length: int,
) -> tuple[tuple[int, ...], int]:
    """(the first new tokens, draft tokens accepted on the way)."""
    speculation = None
    if drafter is not None and shortlist is not None:
        speculation = Speculation(drafter, shortlist, create_tree(tree, sampling))
    emissions = decode(
        target,
        torch.tensor(PROMPT),
        len(PROMPT) + length + tree.depth + 1,
        sampling,
        GeneratorSource(sampling.seed),
        speculation,
    )
    tokens: tuple[int, ...] = ()
    accepted = 0
    for emission in emissions:
        tokens += tuple(emission.token_ids)
        accepted += emission.step.accepted if emission.step else 0
        if len(tokens) >= length:
            break
    return tokens[:length], accepted


@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("tree", TREES)
def test_greedy_tokens_are_those_of_plain_decoding(
    target: Target, drafter: NoisyTarget, shortlist_of: Any, tree: str, shortlist: str
) -> None:
    greedy = SamplingConfig(0.0)
    config = TreeConfig(tree, size=8, depth=4, width=3)
    plain, _ = generate(target, None, None, config, greedy, 32)
    tokens, accepted = generate(target, drafter, shortlist_of(shortlist), config, greedy, 32)
    assert tokens == plain
    assert accepted >= 4


SAMPLER = SamplingConfig(temperature=1.5, top_k=4, top_p=0.95)


def joint_law(target: Target, length: int) -> dict[tuple[int, ...], float]:
    """Closed form: p of every sequence of new tokens, by plain passes over each prefix."""
    law = {(): 1.0}
    for _ in range(length):
        longer = {}
        for prefix, chance in law.items():
            state = target.begin(len(PROMPT) + length + 1)
            output = target.prefill(state, torch.tensor((*PROMPT, *prefix)))
            p = probabilities(output.logits()[-1:], SAMPLER)[0]
            for token in p.nonzero().squeeze(1).tolist():
                longer[(*prefix, token)] = chance * float(p[token])
        law = longer
    return law


@pytest.mark.slow
@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("tree", [*SAMPLING_TREES, "plain"])
def test_sampled_law_of_three_tokens(
    target: Target, drafter: NoisyTarget, shortlist_of: Any, tree: str, shortlist: str
) -> None:
    """Pearson's test over joint sequences, one family-wise error for all trees and shortlists."""
    if tree == "plain" and shortlist != "full":
        pytest.skip("plain decoding has no shortlist")
    runs = 1500
    law = joint_law(target, 3)
    assert abs(sum(law.values()) - 1) < 1e-5
    choice = None if tree == "plain" else shortlist_of(shortlist)
    config = TreeConfig("eagle2" if tree == "plain" else tree, size=6, depth=3, width=2)
    counts: Counter[tuple[int, ...]] = Counter()
    accepted = 0
    for seed in range(runs):
        sampling = SamplingConfig(SAMPLER.temperature, SAMPLER.top_k, SAMPLER.top_p, 0.0, seed)
        tokens, hits = generate(
            target, None if choice is None else drafter, choice, config, sampling, 3
        )
        counts[tokens] += 1
        accepted += hits
    assert set(counts) <= set(law)
    if tree != "plain":
        assert accepted > 0.1 * runs
    cells = [(counts[key], runs * p) for key, p in law.items() if runs * p >= 5]
    seen, expected = (sum(column) for column in zip(*cells, strict=True))
    if runs - expected >= 5:
        cells.append((runs - seen, runs - expected))
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    tail = torch.special.gammaincc(
        torch.tensor((len(cells) - 1) / 2, dtype=torch.float64),
        torch.tensor(statistic / 2, dtype=torch.float64),
    )
    tests = len(list(itertools.product(SAMPLING_TREES, SHORTLISTS))) + 1
    assert float(tail) > FAMILY / tests
