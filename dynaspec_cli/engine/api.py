"""The public entry: load a model once, then generate, compare, or benchmark its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dynaspec_cli.config import MOST_NODES, GenerationConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.device.at_once import DraftsAtOnce
from dynaspec_cli.drafters.load import load_drafting
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.comparison import compared
from dynaspec_cli.engine.conversation import Conversation, never
from dynaspec_cli.engine.detokenizer import IncrementalDetokenizer
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.events import (
    DoneEvent,
    Event,
    FinishReason,
    GenerationResult,
    NoticeEvent,
    StepStats,
    TokensEvent,
)
from dynaspec_cli.engine.measure import costs_of, reconsider
from dynaspec_cli.engine.prefix_cache import PrefixCache
from dynaspec_cli.engine.session import decode
from dynaspec_cli.engine.settings import drafting_settings, request_settings
from dynaspec_cli.engine.stats import summarize
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.protocols import Drafter, Shortlist, Target, TreePolicy
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.target.load import load
from dynaspec_cli.target.recommended import unmet_notice
from dynaspec_cli.target.resolve import resolve_model
from dynaspec_cli.target.tokenizer import TextTokenizer
from dynaspec_cli.tree.acceptance import EXAMPLE, nearest, read_table
from dynaspec_cli.tree.registry import create_tree, unread
from dynaspec_cli.tuning.costs import CostTable
from dynaspec_cli.tuning.prior import path_values

LOOKUP_NODES = 15
"""Nodes and levels of a tree of lookup where sizes adapt."""
LEAST_PRICE = 0.02
"""Path probability below which lookup proposes nothing, however cheap rows are."""


class Engine:
    """A target with its tokenizer and, where there is one, its drafter. Holds no state of a
    request.

    ``drafter`` None: generation is plain autoregressive decoding, and every result says so.
    ``lookup``: drafts beside ``drafter``, in the same trees. ``notices``: what a user should know
    about the choice of parts; each request begins with them.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: TextTokenizer,
        drafter: Drafter | None,
        load_s: float = 0.0,
        notices: tuple[str, ...] = (),
        lookup: LookupDrafter | None = None,
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.drafter = drafter
        self.load_s = load_s
        self.notices = notices
        self.lookup = lookup
        self._shortlists: dict[tuple[ShortlistConfig, int], Shortlist] = {}
        self._tables: dict[ShortlistConfig, CostTable] = {}
        self._at_once: dict[Shortlist | None, DraftsAtOnce | None] = {}

    @classmethod
    def load(
        cls,
        model: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        drafter: str = "auto",
        progress: Callable[[Any], None] | None = None,
        drafter_options: Mapping[str, str] | None = None,
    ) -> Engine:
        """Load target, tokenizer and drafter; the arguments are the command line's options
        (docs/guide/cli.md); ``device`` "map" is --device-map auto."""
        begun = time.perf_counter()
        extra = {} if progress is None else {"progress": progress}
        source = resolve_model(model)
        target, tokenizer = load(source, dtype, device, threads, **extra)
        found = load_drafting(drafter, target, tokenizer, drafter_options)
        notices = [] if (unmet := unmet_notice(source)) is None else [unmet]
        if drafter == "auto" and isinstance(found.drafter, LookupDrafter):
            notices.append(
                f"no drafter ships for {target.name}: continuations are looked up in the text "
                "itself; dynaspec train-drafter makes a faster one"
            )
        load_s = time.perf_counter() - begun
        return cls(target, tokenizer, found.drafter, load_s, tuple(notices), found.lookup)

    def shortlist(self, config: ShortlistConfig, depth: int) -> Shortlist:
        """The shortlist of a config, made once (its head is a copy of the target's rows in another
        order)."""
        key = (config, depth)
        if key not in self._shortlists:
            head = None if self.drafter is None else self.drafter.head
            self._shortlists[key] = shortlists.create(config, self.target, head=head, depth=depth)
        return self._shortlists[key]

    def acceptance(self, temperature: float) -> tuple[float, ...] | None:
        """Acceptance by position among siblings as it was measured for the drafter, at the
        temperature next to this one; None where it was not."""
        table = read_table(None if self.drafter is None else self.drafter.folder)
        return table[nearest(table, temperature)].vector if table else None

    def encode(self, prompt: str) -> list[int]:
        """Prompt ids of a text. Raises DynaSpecError where it is empty."""
        if not prompt.strip():
            raise DynaSpecError("the prompt is empty; give some text to continue")
        return self.tokenizer.encode(prompt)

    def generate(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig,
        *,
        speculative: bool = True,
        should_stop: Callable[[], bool] = never,
        cache: PrefixCache | None = None,
    ) -> Iterator[Event]:
        """Yield ``NoticeEvent`` and ``TokensEvent`` as generation goes, then one ``DoneEvent``.

        prompt: text, or token ids (BOS included where the model wants one). ``should_stop`` is
        asked after each step and between pieces of a long prompt; a KeyboardInterrupt inside a step
        ends the request too ("interrupted"), keeping what was generated. ``cache``: see
        ``conversation``. Raises DynaSpecError for an empty prompt or one that does not leave room
        in the model's context.
        """
        begun = time.perf_counter()
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        limit = self.limit(len(ids), config)
        if speculative:
            yield from map(NoticeEvent, self._notices(config))
        building = time.perf_counter()
        speculation = self.speculation(config) if speculative and self.drafter else None
        built_s = time.perf_counter() - building  # a first request permutes the draft head: loading
        begun += built_s
        detokenizer = IncrementalDetokenizer.for_tokenizer(self.tokenizer, ids, config.stop)
        source = GeneratorSource(config.sampling.seed)
        cache = PrefixCache(self.target) if cache is None else cache
        emissions = decode(
            self.target,
            torch.tensor(ids),
            len(ids) + limit,
            config.sampling,
            source,
            speculation,
            cache=cache,
        )

        new: list[int] = []
        steps: list[StepStats] = []
        reason: FinishReason | None = None
        first_s = decode_s = away = 0.0
        try:
            for emission in emissions:
                if not emission.token_ids:
                    if should_stop():
                        break
                    continue
                now = time.perf_counter() - begun
                if emission.step is None:
                    first_s = now
                else:
                    decode_s = now - first_s
                kept, reason = self._cut(emission.token_ids, limit - len(new))
                step = emission.step
                if step is not None:
                    step = step.without(away)
                    step = step.up_to(len(kept)) if reason == "eos" else step
                    steps.append(step)
                text = detokenizer.push(kept)
                if detokenizer.stopped:
                    kept, reason = kept[: detokenizer.num_tokens - len(new)], "stop"
                new += kept
                handed = time.perf_counter()
                yield TokensEvent(tuple(kept), text, step)
                away = time.perf_counter() - handed  # the reader's time: printing, a slow pipe
                begun += away
                if reason is not None:
                    break
                if should_stop():
                    reason = "interrupted"
                    break
        except KeyboardInterrupt:
            reason = "interrupted"
            cache.drop_drafter()
        finally:
            emissions.close()  # type: ignore[attr-defined]
        tail = detokenizer.finish()
        if tail:
            yield TokensEvent((), tail)
        table = self._tables.get(config.shortlist)
        if speculation is not None and table is not None:
            reconsider(self.target, speculation, table, steps)
        yield DoneEvent(
            summarize(
                text=detokenizer.text,
                token_ids=new,
                prompt_tokens=len(ids),
                finish_reason=reason or "interrupted",
                steps=steps,
                speculative=speculation is not None,
                time_to_first_token_s=first_s,
                decode_s=decode_s,
                load_s=self.load_s + built_s,
                settings=self.settings(config, speculation),
                cached_prompt_tokens=cache.reused,
            )
        )

    def conversation(self) -> Conversation:
        """Requests that follow one another, each of which reads only what is new in its prompt."""
        return Conversation(self)

    def complete(
        self, prompt: str | Sequence[int], config: GenerationConfig, *, speculative: bool = True
    ) -> GenerationResult:
        """``generate`` without the events."""
        result = None
        for event in self.generate(prompt, config, speculative=speculative):
            if isinstance(event, DoneEvent):
                result = event.result
        assert result is not None
        return result

    def compare(
        self, prompt: str | Sequence[int], result: GenerationResult, config: GenerationConfig
    ) -> GenerationResult:
        """Decode the same prompt autoregressively; the speculative ``result`` with its
        ``comparison`` filled in.

        Sampled texts of the two arms differ by chance, so that ``identical`` says something at
        temperature 0 only.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        plain = self.complete(ids, config, speculative=False)
        return replace(result, comparison=compared(self.target, ids, result, plain))

    def settings(self, config: GenerationConfig, speculation: Speculation | None) -> dict[str, Any]:
        """Every option as used, versions, threads and kernels."""
        drafting: dict[str, Any] = {"drafter": "none"}
        if speculation is not None:
            tree, size = self.tree(config.tree)
            costs = self._tables.get(config.shortlist) if config.tree.adapts else None
            drafting = drafting_settings(config, speculation, tree, size, costs)
        return request_settings(self.target, config, drafting)

    def _notices(self, config: GenerationConfig) -> Iterator[str]:
        """What differs from what an option's default promises."""
        yield from self.notices
        if self.drafter is None:
            yield f"no drafter was loaded for {self.target.name}: plain autoregressive decoding"
            return
        for note in self.drafter.describe().get("drafter_notes", ()):
            yield f"drafter {self.drafter.name}: {note}"
        tree = config.tree
        yield from unread(tree, config.sampling)
        asked = tree.policy == "sequoia" and tree.acceptance is None
        if asked and self.acceptance(config.sampling.temperature) is None:
            yield (
                "no acceptance was measured for this drafter, so --tree sequoia takes another "
                "model's; dynaspec bench --measure-acceptance measures it"
            )
        head = self.drafter.head
        if head is None or head.own or config.shortlist.method != "auto":
            return
        if (method := shortlists.default_for(self.target, head)) != shortlists.DEFAULT:
            yield (
                f"no shortlist bundle for {self.target.name} is shipped, so --shortlist {method} "
                "is used; dynaspec build-clusters makes one"
            )

    def speculation(self, config: GenerationConfig) -> Speculation:
        """What drafts for one request. Raises DynaSpecError without a drafter."""
        if self.drafter is None:
            raise DynaSpecError(f"there is no drafter for {self.target.name}; give --drafter")
        headed = self.drafter.head is not None
        acceptance = self.acceptance(config.sampling.temperature)
        tree, size = self.tree(config.tree)
        sampling = config.sampling
        source = GeneratorSource(sampling.seed, DRAFT_STREAM)
        limit = size if tree.adapts else None

        def resized(size: int) -> TreePolicy:
            shape = replace(tree, size=size, limit=limit)
            return create_tree(shape, sampling, acceptance=acceptance, source=source, draws=headed)

        policy = resized(size)
        # A policy that draws children sets the temperature of its draws itself.
        heat = tree.temperature(sampling)
        temperature = 1.0 if policy.needs_distribution else heat
        shortlist = self.shortlist(config.shortlist, tree.depth) if headed else None
        lookup = self.lookup if headed else None
        fixed = Speculation(
            self.drafter,
            shortlist,
            policy,
            temperature,
            lookup,
            size,
            at_once=self._drafts_at_once(shortlist),
        )
        if not tree.adapts:
            return fixed
        costs = self._costs(config.shortlist, fixed)
        if isinstance(self.drafter, LookupDrafter):
            # Its trees are no larger than what a match promises; the price of a row is set.
            lookup = LookupDrafter(max(costs.row_price, LEAST_PRICE))
            best_first = tree.policy == "dyspec" and tree.threshold is None
            return replace(fixed, drafter=lookup, costs=costs if best_first else None)
        prior = path_values(acceptance or EXAMPLE, size, tree.depth)
        return replace(
            fixed,
            costs=costs,
            resized=resized,
            prior=tuple(prior),
            measured=acceptance is not None,
            depth=tree.depth,
        )

    def _drafts_at_once(self, shortlist: Shortlist | None) -> DraftsAtOnce | None:
        """On a GPU a whole round is drafted there, where drafter and shortlist have a form for
        it."""
        if self.target.device.type != "cuda" or self.drafter is None:
            return None
        from dynaspec_cli.device.drafting import DeviceDrafting

        if shortlist not in self._at_once:  # its graphs serve every request
            made = DeviceDrafting.of(self.drafter, shortlist, self.target)
            self._at_once = {shortlist: made}
        return self._at_once[shortlist]

    def tree(self, config: TreeConfig) -> tuple[TreeConfig, int]:
        """The shape of trees and the most nodes of one: lookup, which takes no time to draft, goes
        deeper where sizes adapt."""
        if not config.adapts:
            return config, config.nodes
        if isinstance(self.drafter, LookupDrafter):
            return replace(config, depth=max(config.depth, LOOKUP_NODES)), LOOKUP_NODES
        return config, MOST_NODES

    def _costs(self, config: ShortlistConfig, parts: Speculation) -> CostTable:
        if config not in self._tables:
            self._tables[config] = costs_of(self.target, parts)
        return self._tables[config]

    def check_length(self, text: str) -> None:
        """Refuse a prompt that cannot fit before it is tokenized, which takes seconds where it has
        megabytes. Raises DynaSpecError."""
        context = self.target.max_context
        if len(text) > context and (least := self.tokenizer.least_tokens(text)) >= context:
            raise DynaSpecError(
                f"the prompt has {least} tokens or more, {self.target.name} takes {context} in "
                "all; shorten the prompt"
            )

    def limit(self, prompt_tokens: int, config: GenerationConfig) -> int:
        """New tokens that fit: --max-new-tokens, cut at the model's context."""
        if prompt_tokens == 0:
            raise UsageError("the prompt holds no tokens; give some text to continue")
        room = self.target.max_context - prompt_tokens
        if room < 1:
            raise DynaSpecError(
                f"the prompt has {prompt_tokens} tokens, {self.target.name} takes "
                f"{self.target.max_context} in all; shorten the prompt"
            )
        return min(config.max_new_tokens, room)

    def _cut(self, tokens: list[int], room: int) -> tuple[list[int], FinishReason | None]:
        """Tokens up to an end-of-text token or the length limit, and why they end there (None: they
        do not)."""
        for i, token in enumerate(tokens[:room]):
            if token in self.tokenizer.eos_ids:
                return tokens[: i + 1], "eos"
        return (tokens[:room], "length") if len(tokens) >= room else (tokens, None)
