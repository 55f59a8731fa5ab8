"""Measures a drafter's acceptance by position among siblings (tree/acceptance.py).

A fixed tree is drafted and verified at every step, and at each node that verification visits it is
noted which child was accepted, or that all were rejected. The tree's shape does not depend on its
tokens, so a node with fewer children says nothing about those it lacks, and says it without bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from dynaspec_cli.bench.engine_method import EngineCodec
from dynaspec_cli.bench.prompts import PromptFormat
from dynaspec_cli.bench.suites import Suite
from dynaspec_cli.config import GenerationConfig, SamplingConfig, TreeConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.session import decode
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree, TreePolicy
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.tree.acceptance import EXAMPLE, Acceptance


def measuring_tree(width: int = len(EXAMPLE)) -> TreeConfig:
    """The tree of a measurement: ``width`` children at the root (1 to 64), fewer where it is seldom
    reached. Trees of many nodes want acceptance at more positions than the usual ten."""
    shape = (*EXAMPLE[:width], *EXAMPLE[-1:] * (width - len(EXAMPLE)))
    whole = max(1.0, sum(shape))
    acceptance = tuple(a / whole for a in shape)
    return TreeConfig("sequoia", size=58 + width, depth=6, width=width, acceptance=acceptance)


class Watched:
    """A policy that keeps the last tree it finished."""

    def __init__(self, policy: TreePolicy) -> None:
        self._policy = policy
        self.tree: DraftTree | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def finish(self, state: Any) -> DraftTree:
        self.tree = self._policy.finish(state)
        return self.tree


def measure_acceptance(
    engine: Engine,
    suites: Sequence[Suite],
    sampling: SamplingConfig,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
    tree: TreeConfig | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Acceptance:
    """Counts over the first turns of the suites' prompts, ``max_new_tokens`` of each. ``tree``: a
    fixed one, ``measuring_tree`` with draws of its own. Raises DynaSpecError without a drafter."""
    if engine.drafter is None:
        raise DynaSpecError(
            f"--measure-acceptance: there is no drafter for {engine.target.name}; give --drafter"
        )
    tree = measuring_tree() if tree is None else tree
    format_ = PromptFormat(EngineCodec(engine), "auto", max_prompt_tokens)
    prompts = [prompt for suite in suites for prompt in suite.prompts]
    tried: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for done, prompt in enumerate(prompts):
        progress(done, len(prompts), prompt.id)
        config = GenerationConfig(
            max_new_tokens,
            sampling=replace(sampling, seed=sampling.seed + done),
            tree=tree,
        )
        for at_node, hit in _visits(engine, format_.context(prompt, []), config):
            tried.update(range(at_node))
            if hit:
                accepted[at_node - 1] += 1
    positions = range(max(tried, default=-1) + 1)
    if not positions:
        raise DynaSpecError("--measure-acceptance: no prompt gave a step to measure")
    facts = {
        "target": engine.target.name,
        "suites": [suite.name for suite in suites],
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "draws": tree.draws(sampling),
        "draft_temperature": tree.temperature(sampling),
    }
    counts = [tuple(counter[b] for b in positions) for counter in (tried, accepted)]
    return Acceptance(counts[0], counts[1], facts)


def _visits(engine: Engine, ids: list[int], config: GenerationConfig) -> Iterator[tuple[int, bool]]:
    """(children tried, was the last of them accepted) at each visited node that had children."""
    speculation = engine.speculation(config)
    policy = Watched(speculation.policy)
    length = min(len(ids) + config.max_new_tokens, engine.target.max_context)
    emissions = decode(
        engine.target,
        torch.tensor(ids),
        length,
        config.sampling,
        GeneratorSource(config.sampling.seed),
        replace(speculation, policy=policy, lookup=None),
    )
    new = 0
    for emission in emissions:
        if emission.step is not None and policy.tree is not None:
            yield from walked(policy.tree, emission.token_ids[:-1])
        new += len(emission.token_ids)
        ended = any(token in engine.tokenizer.eos_ids for token in emission.token_ids)
        if ended or new >= length - len(ids):
            return


def walked(tree: DraftTree, path: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """The visits of a walk that accepted the tokens ``path``: siblings have different tokens and
    are tried in the order of their rows."""
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    row = 0
    for token in path:
        children = [child for child, parent in enumerate(parents) if parent == row]
        place = next(i for i, child in enumerate(children) if tokens[child] == token)
        yield place + 1, True
        row = children[place]
    rest = parents.count(row)
    if rest:
        yield rest, False
