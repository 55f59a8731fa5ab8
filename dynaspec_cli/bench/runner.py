"""The measuring loop: methods take turns prompt by prompt, in a random order that the seed
decides."""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynaspec_cli.bench import exactness
from dynaspec_cli.bench.method import Codec, Method, Reference, Sample, TurnTrace
from dynaspec_cli.bench.prompts import PromptFormat
from dynaspec_cli.bench.scripts import covered_by_script
from dynaspec_cli.bench.spec import PEERS
from dynaspec_cli.bench.store import SampleStore
from dynaspec_cli.bench.suites import Prompt, Suite
from dynaspec_cli.errors import DynaSpecError

WARM_UP_TOKENS = 16

ProgressCallback = Callable[[int, int, str], None]
"""(finished prompts, prompts in all, what runs now)"""


@dataclass(frozen=True)
class Plan:
    """What to measure. ``max_new_tokens`` holds for each turn; ``warmup`` counts discarded runs
    of each method; ``seed`` decides the order of the methods and, when sampling, the draws."""

    suites: tuple[Suite, ...]
    max_new_tokens: dict[str, int]
    repeats: int = 1
    warmup: int = 1
    seed: int = 0
    check_exact: bool = False


class Runner:
    """Runs ``methods`` over a plan and hands each finished prompt to the store.

    Every method answers the same context: a later turn holds the answers of ``ar`` (without ``ar``:
    of the first method) to the earlier ones.
    """

    def __init__(
        self,
        plan: Plan,
        methods: Sequence[Method],
        prompt_format: PromptFormat,
        codec: Codec,
        store: SampleStore,
        reference: Reference | None = None,
        progress: ProgressCallback = lambda done, total, what: None,
    ):
        self._plan = plan
        self._methods = list(methods)
        self._format = prompt_format
        self._codec = codec
        self._store = store
        self._reference = reference
        self._progress = progress
        names = [m.name for m in methods]
        self._lead = "ar" if "ar" in names else names[0]
        self._checked = plan.check_exact and reference is not None and "ar" in names

    def run(self) -> None:
        """Measure every prompt that the store does not hold yet."""
        todo = [
            (prompt, repeat)
            for repeat in range(self._plan.repeats)
            for suite in self._plan.suites
            for prompt in suite.prompts
        ]
        done = {(s.suite, s.id, s.repeat) for s in self._store.samples}
        missing = [(p, r) for p, r in todo if (p.suite, p.id, r) not in done]
        if not missing:
            return
        finished = len(todo) - len(missing)
        for method in self._methods:
            self._progress(finished, len(todo), f"preparing {method.name}")
            method.prepare()
        self._warm_up(missing[0][0])
        # What lives now lives for the whole run: keep the collector from walking it between tokens.
        gc.collect()
        gc.freeze()
        try:
            for prompt, repeat in missing:
                self._store.append(self._prompt(prompt, repeat, finished, len(todo)))
                finished += 1
                self._progress(finished, len(todo), prompt.id)
        finally:
            gc.unfreeze()

    def _warm_up(self, prompt: Prompt) -> None:
        """Page in weights, fill caches, start thread pools; results are thrown away."""
        context = self._format.context(prompt, [])
        tokens = min(WARM_UP_TOKENS, self._plan.max_new_tokens[prompt.suite])
        for method in self._methods:
            for _ in range(self._plan.warmup):
                self._answer(method, prompt, context, tokens, self._plan.seed)

    def _prompt(self, prompt: Prompt, repeat: int, finished: int, total: int) -> list[Sample]:
        key = f"{self._plan.seed}/{prompt.suite}/{prompt.id}/{repeat}"
        order = list(self._methods)
        random.Random(key).shuffle(order)
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        max_new = self._plan.max_new_tokens[prompt.suite]
        traces: dict[str, list[TurnTrace]] = {m.name: [] for m in self._methods}
        verdicts: dict[str, list[exactness.TurnVerdict]] = {m.name: [] for m in self._methods}
        for turn in range(len(prompt.turns)):
            context = self._format.context(prompt, [t.token_ids for t in traces[self._lead]])
            answers: dict[str, TurnTrace] = {}
            for method in order:
                self._progress(finished, total, f"{prompt.id}: {method.name}")
                answers[method.name] = self._answer(method, prompt, context, max_new, seed + turn)
            for name, answer in answers.items():
                traces[name].append(answer)
                if self._checked and self._reference is not None and name != "ar":
                    verdicts[name].append(
                        exactness.compare_turn(
                            context, answer, answers["ar"], self._reference, name in PEERS
                        )
                    )
        return [
            Sample(
                suite=prompt.suite,
                id=prompt.id,
                task=prompt.task,
                method=method.name,
                repeat=repeat,
                turns=tuple(traces[method.name]),
                scripts=covered_by_script(traces[method.name], prompt.task, self._piece),
                texts=tuple(self._codec.decode(t.token_ids) for t in traces[method.name]),
                exact=exactness.verdict_of(verdicts[method.name])
                if verdicts[method.name]
                else None,
            )
            for method in self._methods
        ]

    def _answer(
        self, method: Method, prompt: Prompt, context: Sequence[int], max_new: int, seed: int
    ) -> TurnTrace:
        try:
            return method.run(context, max_new, seed)
        except DynaSpecError as error:
            raise type(error)(f"prompt {prompt.id}, method {method.name}: {error}") from error

    def _piece(self, token_id: int) -> str:
        return self._codec.decode([token_id])
