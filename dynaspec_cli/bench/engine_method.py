"""The engine as arms of a benchmark: one loaded target serves them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dynaspec_cli.bench.method import TurnTrace
from dynaspec_cli.bench.spec import MethodSpec
from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.weights.registry import STORED


class EngineMethod:
    """``ar`` or a drafter x shortlist x tree of an ``Engine``.

    ``tree`` gives depth, width and the default size; the spec's policy and nodes go before it.
    """

    def __init__(
        self,
        spec: MethodSpec,
        engine: Engine,
        sampling: SamplingConfig,
        tree: TreeConfig,
        draft_head: str = STORED,
    ):
        self.name = str(spec)
        self._engine = engine
        self._speculative = spec.kind == "speculative"
        if self._speculative and engine.drafter is None:
            raise DynaSpecError(
                f"--method {spec}: no drafter for {engine.target.name}; give --drafter FOLDER "
                "(dynaspec train-drafter makes one) or leave this method out"
            )
        shortlist, shape = ShortlistConfig(), tree
        if self._speculative:
            shortlist = ShortlistConfig(str(spec.shortlist), spec.shortlist_size, draft_head)
            size = tree.size if spec.nodes is None else spec.nodes or None
            shape = replace(tree, policy=str(spec.tree), size=size)
        self._config = GenerationConfig(sampling=sampling, tree=shape, shortlist=shortlist)

    def prepare(self) -> None:
        drafter = self._engine.drafter
        if self._speculative and drafter is not None and drafter.head is not None:
            self._engine.shortlist(self._config.shortlist, self._config.tree.depth)

    def run(self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int) -> TurnTrace:
        config = replace(
            self._config,
            max_new_tokens=max_new_tokens,
            sampling=replace(self._config.sampling, seed=seed),
        )
        result = self._engine.complete(prompt_ids, config, speculative=self._speculative)
        if result.finish_reason == "interrupted":
            raise KeyboardInterrupt
        return TurnTrace(
            prompt_tokens=result.prompt_tokens,
            token_ids=tuple(result.token_ids),
            prefill_s=result.time_to_first_token_s,
            decode_s=result.decode_s,
            finish_reason=result.finish_reason,
            steps=result.steps,
        )


class EngineCodec:
    """The target's tokenizer as ``method.Codec``."""

    def __init__(self, engine: Engine):
        self._tokenizer = engine.tokenizer
        self.chat_template: str | None = self._tokenizer.chat_template
        self.has_chat_template = bool(self.chat_template)

    def encode(self, text: str, start: bool) -> list[int]:
        return self._tokenizer.encode(text, special=start)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self._tokenizer.chat([dict(message) for message in messages])


class EngineReference:
    """The target's own logits for one position, by a plain pass over the whole context."""

    def __init__(self, engine: Engine):
        self._target = engine.target
        self.dtype = str(engine.target.dtype).removeprefix("torch.")
        self.bit_exact = engine.target.bit_exact
        self.eos_ids = frozenset(engine.tokenizer.eos_ids)

    def gaps(self, context: Sequence[int], candidates: Sequence[int]) -> tuple[float, list[float]]:
        ids = torch.tensor(list(context))
        output = self._target.prefill(self._target.begin(ids.numel()), ids)
        logits = output.logits(torch.tensor([ids.numel() - 1]))[0]
        best, second = torch.topk(logits, 2).values.tolist()
        return best - second, [best - float(logits[i]) for i in candidates]


def engine_facts(engine: Engine) -> dict[str, Any]:
    """What summary and provenance say about the loaded parts."""
    from dynaspec_cli import ops

    drafter = engine.drafter
    return {
        "model": engine.target.name,
        "vocab_size": engine.target.vocab_size,
        "head_hash": engine.target.head_hash(),
        "dtype": str(engine.target.dtype).removeprefix("torch."),
        "device": str(engine.target.device),
        "threads": torch.get_num_threads(),
        "kernels": ops.backend(engine.target.device),
        "bit_exact": engine.target.bit_exact,
        "target_kernels": engine.target.kernels,
        **({} if drafter is None else drafter.describe()),
    }
