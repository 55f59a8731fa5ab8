"""Every random outcome of a draft-and-verify step, with its probability, on toy models of a few
tokens.

``outcomes`` runs an experiment once for each sequence of random decisions; ``ToyModel`` is a target
and a drafter whose laws are tables over contexts; ``run_step`` is the decode loop's step written
down a second time, without caches or kernels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, TreePolicy
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.verify import verify_sampled

Context = tuple[int, ...]
Law = dict[Context, float]


class Script:
    """A RandomSource that follows recorded decisions and takes the first possible one after
    them."""

    def __init__(self, choices: list[tuple[list[float], int]]) -> None:
        self.choices = choices
        self.position = 0
        self.probability = 1.0

    def _choose(self, weights: list[float]) -> int:
        """Index of one of the (positive) weights, which sum to 1."""
        if self.position == len(self.choices):
            self.choices.append((weights, 0))
        known, index = self.choices[self.position]
        assert known == weights, "the experiment is not a function of its random decisions"
        self.position += 1
        self.probability *= weights[index]
        return index

    def accept(self, probability: float) -> bool:
        if probability <= 0 or probability >= 1:
            return probability >= 1
        return self._choose([probability, 1 - probability]) == 0

    def categorical(self, weights: Tensor) -> int:
        values = weights.double().tolist()
        assert min(values) >= 0
        total = math.fsum(values)
        support = [i for i, value in enumerate(values) if value > 0]
        if len(support) == 1:
            return support[0]
        return support[self._choose([values[i] / total for i in support])]

    def uniforms(
        self, law: Callable[[], Tensor], counts: Sequence[int], replacement: bool
    ) -> Tensor:
        """Decides which columns are drawn, and gives the middles of their intervals."""
        uniforms = torch.zeros(len(counts), max(counts), dtype=torch.float64)
        for i, row in enumerate(law()):
            left = row.double().clone()
            for j in range(counts[i]):
                if not bool(left.any()):
                    break
                column = self.categorical(left)
                middle = float(left[:column].sum()) + float(left[column]) / 2
                uniforms[i, j] = middle / float(left.sum())
                if not replacement:
                    left[column] = 0
        return uniforms


def outcomes(experiment: Callable[[Script], Any]) -> Iterator[tuple[Any, float]]:
    """(result, probability) of every sequence of random decisions of the experiment."""
    choices: list[tuple[list[float], int]] = []
    while True:
        script = Script(choices)
        result = experiment(script)
        assert script.position == len(choices)
        yield result, script.probability
        while choices and choices[-1][1] + 1 == len(choices[-1][0]):
            choices.pop()
        if not choices:
            return
        weights, index = choices[-1]
        choices[-1] = (weights, index + 1)


class ToyModel:
    """Target and drafter over ``vocab`` tokens; all logits float64, fixed by (seed, context).
    ``shortlist``: tokens that a frontier may draft, a function of the depth and of *all* its
    contexts; it varies and often misses the target's token. With ``shared`` False it is a function
    of the depth alone."""

    def __init__(
        self,
        vocab: int,
        shortlist_size: int,
        seed: int = 0,
        spread: float = 1.5,
        shared: bool = True,
    ) -> None:
        self.vocab, self.shortlist_size, self.seed = vocab, shortlist_size, seed
        self.spread, self.shared = spread, shared
        self.memo: dict[Any, Tensor] = {}

    def _normal(self, *key: Any) -> Tensor:
        if key not in self.memo:
            generator = torch.Generator().manual_seed(hash((self.seed, *key)) % (1 << 63))
            self.memo[key] = self.spread * torch.randn(
                self.vocab, generator=generator, dtype=torch.float64
            )
        return self.memo[key]

    def target_logits(self, context: Context) -> Tensor:
        return self._normal(0, context)

    def target(self, context: Context, sampling: SamplingConfig) -> Tensor:
        return probabilities(self.target_logits(context)[None], sampling)[0]

    def draft_logits(self, context: Context) -> Tensor:
        """Half the target's, half noise: drafts are sometimes accepted, sometimes not."""
        return 0.5 * self._normal(0, context) + 0.7 * self._normal(1, context)

    def shortlist(self, contexts: list[Context]) -> Tensor:
        noise = self._normal(2, tuple(contexts) if self.shared else len(contexts[0]))
        return torch.sort(torch.topk(noise, self.shortlist_size).indices).values

    def candidates(self, contexts: list[Context], width: int) -> DraftHeadOutput:
        """As a shortlisted head gives them, with an arbitrary estimate of the mass."""
        ids = self.shortlist(contexts)
        logits = torch.stack([self.draft_logits(context)[ids] for context in contexts])
        log_probs = torch.log_softmax(logits, -1)
        best = torch.topk(log_probs, min(width, ids.numel()))
        log_mass = math.log(0.9)
        return DraftHeadOutput(
            best.values + log_mass, ids[best.indices], ids.numel(), log_probs, ids, self.shared
        )


def draft(model: ToyModel, policy: TreePolicy, context: Context) -> DraftTree:
    """Grow a tree below ``context``, checking the frontier's bookkeeping on the way."""
    state = policy.begin(context[-1])
    contexts, stepped = [context], []
    while True:
        frontier = policy.grow(state, model.candidates(contexts, policy.width))
        if frontier is None:
            return policy.finish(state)
        source, tokens = frontier.source.tolist(), frontier.tokens.tolist()
        parents = frontier.parents.tolist()
        contexts = [(*contexts[s], token) for s, token in zip(source, tokens, strict=True)]
        for node, parent in zip(contexts, parents, strict=True):
            assert node[:-1] == (context if parent < 0 else stepped[parent])
        stepped += contexts


def node_contexts(tree: DraftTree, context: Context) -> list[Context]:
    """The context that ends in each tree row."""
    contexts = [context]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        contexts.append((*contexts[parent], token))
    return contexts


def run_step(
    model: ToyModel, policy: TreePolicy, context: Context, sampling: SamplingConfig, source: Any
) -> Context:
    """Draft, verify; the tokens emitted."""
    tree = draft(model, policy, context)
    contexts = node_contexts(tree, context)
    verdict = verify_sampled(tree, lambda row: model.target(contexts[row], sampling), source)
    end = contexts[int(verdict.path[-1])]
    return (*end[len(context) :], verdict.bonus)


PolicyMaker = Callable[[Script], TreePolicy]


def step_law(model: ToyModel, make: PolicyMaker, context: Context, sampling: SamplingConfig) -> Law:
    """The law of the tokens that one step emits."""
    law: Law = defaultdict(float)
    total = 0.0
    for emitted, probability in outcomes(
        lambda script: run_step(model, make(script), context, sampling, script)
    ):
        law[emitted] += probability
        total += probability
    assert abs(total - 1) < 1e-12
    return law


def emitted_law(
    model: ToyModel,
    make: PolicyMaker,
    context: Context,
    sampling: SamplingConfig,
    length: int,
    memo: dict[Context, Law] | None = None,
) -> Law:
    """The law of the first ``length`` tokens, over as many steps as they take."""
    memo = {} if memo is None else memo
    if context not in memo:
        memo[context] = step_law(model, make, context, sampling)
    law: Law = defaultdict(float)
    for emitted, probability in memo[context].items():
        if len(emitted) >= length:
            law[emitted[:length]] += probability
            continue
        rest = emitted_law(model, make, (*context, *emitted), sampling, length - len(emitted), memo)
        for tail, tail_probability in rest.items():
            law[(*emitted, *tail)] += probability * tail_probability
    return law


def target_law(model: ToyModel, context: Context, sampling: SamplingConfig, length: int) -> Law:
    """The law of the first ``length`` tokens of plain decoding."""
    if length == 0:
        return {(): 1.0}
    law: Law = {}
    for token, p in enumerate(model.target(context, sampling).tolist()):
        if p > 0:
            for tail, rest in target_law(model, (*context, token), sampling, length - 1).items():
                law[(token, *tail)] = p * rest
    return law


def distance(a: Law, b: Law) -> float:
    """The largest difference of a probability."""
    return max(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in {*a, *b})
