"""DynaSpec's context-dependent shortlist (arXiv 2510.13847), filled from all signals at once.

One token budget a draft step, by draft position, holds
  * a core that is always in: special tokens and the most frequent ones (rows [0, core) of the
    head);
  * tokens of the context: prompt, the target's top tokens so far, drafted tokens (context.py);
  * whole token clusters by the router's score, the maximum over the frontier's rows, until the
    budget is full; only while the text brings new tokens (novelty.py).
The paper has the clusters only; the split was tuned on held-out text (docs/methods/shortlists.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.protocols import DraftTree, ShortlistQuery, Target, TargetOutput
from dynaspec_cli.shortlist.base import BlockShortlist, Selection
from dynaspec_cli.shortlist.context import ContextTokens
from dynaspec_cli.shortlist.head import DraftHead
from dynaspec_cli.shortlist.nanospec import ContextState, observe_context, prefill_tokens
from dynaspec_cli.shortlist.novelty import Novelty
from dynaspec_cli.shortlist.registry import DEFAULT_SIZES
from dynaspec_cli.shortlist.request import ShortlistRequest
from dynaspec_cli.shortlist.router import Router
from dynaspec_cli.shortlist.schedule import BudgetSchedule

ROUTED_FROM = 0.1
"""Clusters are asked for while this share of the latest tokens is new, or more: what a router's
time is worth (docs/methods/shortlists.md)."""


@dataclass(frozen=True)
class Split:
    """Shares of the mean budget: ``core`` rows always in, ``context`` the cap of the context set;
    what is left, and what the context does not use, goes to clusters. ``decay``: of the budget with
    the draft position."""

    core: float = 0.25
    context: float = 0.25
    decay: float = 0.8

    def __post_init__(self) -> None:
        if not (self.core >= 0 and self.context >= 0 and self.core + self.context <= 1):
            raise DynaSpecError(
                "dynaspec split: expected shares of at least 0 with a sum of at most 1, got core "
                f"{self.core}, "
                f"context {self.context}"
            )

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass
class RoutedState(ContextState):
    """``novelty``: of the text so far, seen from core and context."""

    novelty: Novelty = field(default_factory=Novelty)


@dataclass
class PendingSelection(Selection):
    """A selection whose rows are chosen in the call that scores them. ``shared``: with clusters, by
    ``scores`` float32 [n, M], None until a router that reads the drafter's output has run; without,
    it is the request's core and context."""

    budget: int = 0
    scores: Tensor | None = None
    done: bool = False


class DynaSpecShortlist(BlockShortlist[RoutedState, PendingSelection]):
    """``head`` in the order of ``cluster_order``; ``offsets`` int32 [M+1] its clusters' borders;
    ``budgets`` tokens by draft position; ``core`` rows always in; ``context_cap`` context tokens at
    most. ``size``: the mean of the budgets. ``routed_from``: the share of new tokens from which on
    clusters are asked for; 0: always."""

    name = "dynaspec"
    routed_from = ROUTED_FROM

    def __init__(
        self,
        head: DraftHead,
        target: Target,
        router: Router | None,
        offsets: Tensor,
        budgets: tuple[int, ...],
        core: int,
        context_cap: int,
        size: int | None = None,
    ) -> None:
        super().__init__(head, budgets[0] if size is None else size)
        self.router = router
        self.offsets = offsets.to(device=head.device, dtype=torch.int32)
        self.budgets = budgets
        # Core and context are never cut by the union op, so the smallest budget must hold them.
        self.core = max(1, min(core, budgets[-1]))
        self.context_cap = min(context_cap, budgets[-1] - self.core)
        self._row_of = head.rows_of(torch.arange(head.vocab_size)).cpu()
        self._embed = target.embed
        self._no_scores = torch.empty((0, 0), dtype=torch.float32, device=head.device)
        self._no_blocks = torch.empty((0, 2), dtype=torch.int32, device=head.device)

    def begin(self, prompt: Tensor, prefill: TargetOutput) -> RoutedState:
        context = ContextTokens(self.head, self.context_cap)
        if self.context_cap:
            context.add(prompt)
            context.add(prefill_tokens(prefill))
        return RoutedState(context)

    def select(self, state: RoutedState, query: ShortlistQuery) -> PendingSelection:
        """Runs an early router; the rows themselves are chosen by the op that scores them."""
        budget = self.budgets[min(query.depth, len(self.budgets)) - 1]
        routed = self.router is not None and state.novelty.share >= self.routed_from
        pending = PendingSelection(self._no_blocks, 0, routed, budget)
        if routed and self.router is not None and self.router.early:
            pending.scores = self._early_scores(query)
        return pending

    def _settle(self, state: RoutedState, selection: PendingSelection, hidden: Tensor) -> None:
        if not selection.done:
            self._choose(state, selection, self._scores(selection, hidden))

    def _topk(
        self,
        state: RoutedState,
        selection: PendingSelection,
        hidden: Tensor,
        k: int,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Chooses and scores in one op, where an op knows the head's form."""
        if self.head.weight.plain is not None:
            self._settle(state, selection, hidden)
        if selection.done:
            return super()._topk(state, selection, hidden, k, temperature)
        scores, head = self._scores(selection, hidden), self.head
        try:
            log_q, ids, _, size, blocks = ops.draft_head(
                hidden,
                head.weight.data,
                head.weight.scale,
                head.row_ids,
                scores,
                self.offsets,
                state.context.rows(),
                self.core,
                selection.budget,
                k,
                temperature,
                head.weight.code,
                head.gather,
            )
        except ops.NotFiniteLogits as error:
            raise NotFiniteError.of_drafter() from error
        selection.blocks, selection.size, selection.done = blocks, int(size), True
        return log_q, ids

    def contains(
        self, state: RoutedState, selection: PendingSelection, token_ids: Tensor
    ) -> Tensor:
        """bool [m]. With a router that reads the drafter's output the selection must have been
        scored."""
        if not selection.done:
            self._choose(state, selection, self._scores(selection, None))
        return super().contains(state, selection, token_ids)

    def settle(self, state: RoutedState, tokens: Tensor) -> None:
        if self.context_cap:
            state.context.add(tokens)

    def observe(
        self,
        state: RoutedState,
        tree: DraftTree,
        output: TargetOutput,
        path: Tensor,
        settled: Tensor,
    ) -> None:
        rows = self._row_of[settled]
        for at_hand in ((rows < self.core) | state.context.holds(rows)).tolist():
            state.novelty.observe(not at_hand)
        if self.context_cap:
            observe_context(state.context, tree, output, path)

    def _early_scores(self, query: ShortlistQuery) -> Tensor:
        assert self.router is not None
        if query.features is None:
            raise DynaSpecError(
                f"--shortlist: the bundle's router ({self.router.kind}) reads features that this "
                "drafter does not predict; build one with --router output or centroid, or take "
                "--shortlist nanospec"
            )
        return self.router.early_scores(query.features, self._embed(query.tokens))

    def _scores(self, selection: PendingSelection, hidden: Tensor | None) -> Tensor:
        """Scores of the clusters: an early router's are there, a late one needs ``hidden``."""
        if self.router is None or not selection.shared:
            return self._no_scores
        if self.router.early:
            assert selection.scores is not None
            return selection.scores
        if selection.scores is None:
            if hidden is None:
                raise DynaSpecError(
                    "dynaspec: this router chooses when it scores; score the frontier first"
                )
            selection.scores = self.router.late_scores(hidden)
        return selection.scores

    def _choose(self, state: RoutedState, selection: PendingSelection, scores: Tensor) -> None:
        selection.blocks, size = ops.shortlist_union(
            scores, self.offsets, state.context.rows(), self.core, selection.budget
        )
        selection.size, selection.done = int(size), True


def cluster_order(
    frequency: Tensor,
    core: int,
    cluster_tokens: Tensor,
    cluster_offsets: Tensor,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(order int64 [V], offsets int32 [M+1]): the ``core`` most frequent tokens first, then cluster
    by cluster what they leave. ``known`` bool [V]: the tokens that the head has (None: all).

    A cluster's border counts from the core's end, so that ``[0, core)`` belongs to no cluster.
    """
    core_ids = frequency[:core].long()
    in_core = torch.zeros(cluster_tokens.numel(), dtype=torch.bool)
    in_core[core_ids] = True
    tokens = cluster_tokens.long()
    kept = ~in_core[tokens] if known is None else ~in_core[tokens] & known[tokens]
    sums = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(kept.long(), 0)])
    offsets = sums[cluster_offsets.long()] + core_ids.numel()
    return torch.cat([core_ids, tokens[kept]]), offsets.to(torch.int32)


def create(request: ShortlistRequest) -> DynaSpecShortlist:
    """Of the bundle's clusters; its router where the drafter reads the head that it was trained
    for, else the frequent tokens take the clusters' share."""
    bundle, target = request.bundle(), request.target
    size = request.size
    if size is None and bundle.config.method == "dynaspec":
        size = min(bundle.config.shortlist_size, target.vocab_size)
    size = replace(request, size=size).tokens(DEFAULT_SIZES["dynaspec"])
    if bundle.frequency is None or bundle.cluster_tokens is None or bundle.cluster_offsets is None:
        raise DynaSpecError(
            f"{bundle.source}: holds no token clusters; build it with --method dynaspec"
        )
    split = Split(**bundle.config.split)
    router = None
    # A router reads hidden rows like those it was trained on: the target's head's.
    if bundle.router is not None and not request.head.own:
        router = Router(bundle.config.router, bundle.router, request.head.weight.device)
    if router is None:
        split = Split(core=1.0 - split.context, context=split.context, decay=1.0)
    frequency = request.held(bundle.frequency.long())
    core = min(max(1, int(size * split.core)), frequency.numel())  # never an empty shortlist
    # Deep trees would let the last budgets fall below what is always in.
    least = min(core + int(size * split.context), target.vocab_size)
    schedule = BudgetSchedule(size, target.vocab_size, split.decay, request.depth)
    budgets = tuple(max(budget, least) for budget in schedule.table())
    vocab = request.head.vocab
    known = None if vocab is None else vocab.mask()
    order, offsets = cluster_order(
        frequency, core, bundle.cluster_tokens, bundle.cluster_offsets, known
    )
    cap = int(size * split.context)
    head = request.draft_head(order)
    return DynaSpecShortlist(head, target, router, offsets, budgets, core, cap, size)
