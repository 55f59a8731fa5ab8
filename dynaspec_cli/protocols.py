"""The four seams of the engine: Target, Drafter, Shortlist, TreePolicy.

A model object holds weights and no state; what belongs to a request lives in the object that
``begin`` returns, of a type of the implementation's own (``State``). The decode loop
(engine/session.py) knows these protocols and nothing behind them. In formulas p is the target's
distribution, q the drafter's.

A drafter comes in two kinds. One yields hidden rows and names the LM head that reads them, its own
or the target's (``DrafterHead``); a shortlist chooses among that head's rows and scores them. The
other has no head and yields scored tokens itself.

Row convention of a draft tree: row 0 is the *root*, the last committed token whose KV row does not
exist yet; rows 1..n are drafted nodes in an order in which a parent precedes its children.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.kept_rows import KeptRows
from dynaspec_cli.unread_tree import UnreadTree
from dynaspec_cli.weights.weight import Weight

if TYPE_CHECKING:
    from dynaspec_cli.sampling.verify import SampledDrafts

State = TypeVar("State")
"""What a request's ``begin`` made, and the same object's other methods are given."""
Chosen = TypeVar("Chosen")
"""What a shortlist selected for one frontier."""


@dataclass(frozen=True)
class DraftTree:
    """A tree to verify. ``tokens`` int64 [n+1], ``parents`` int64 [n+1] with parents[0] = -1 and
    parents[i] < i; both on the host, whatever the target's device. ``q`` holds, for policies that
    *sample* children, what verification needs (see sampling/verify.py); it is None for
    deterministic drafts, which are point masses."""

    tokens: Tensor
    parents: Tensor
    q: SampledDrafts | None = None
    values: tuple[float, ...] | None = None
    """The policy's estimates of the probability that each node's path is accepted, descending; None
    where it makes none."""

    @property
    def num_nodes(self) -> int:
        """Nodes below the root."""
        return int(self.tokens.numel()) - 1

    @property
    def most_rows(self) -> int:
        """Rows that a pass over it has, the root included (``UnreadTree``: at most)."""
        return int(self.tokens.numel())


class TargetOutput(Protocol):
    """What a target pass yields for n rows. Logits are only computed when asked for."""

    features: Tensor
    """[n, d]: the residual stream *before* the final norm; what an EAGLE drafter reads."""

    taps: Tensor | None
    """[n, A * d]: the residual streams that ``Target.begin`` was asked for, in its order; None
    where it was asked for none."""

    cheap_rows: int | None
    """Rows whose logits cost about what one row's do; None: any number."""

    @property
    def rows_ranked(self) -> Tensor | None:
        """int64 [r]: rows whose best tokens are known already and cost nothing; None: all."""
        ...

    def logits(self, rows: Tensor | None = None) -> Tensor:
        """Full-vocabulary logits, float32 [n, V] (or of the given rows)."""
        ...

    def logits_at(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        """Float32 [m]: the logit of ``token_ids[i]`` at ``rows[i]``, up to rounding."""
        ...

    def argmax(self, rows: Tensor | None = None) -> Tensor:
        """int64 [n] (or of the given rows); the lowest id wins an exact tie."""
        ...

    def leaders(self, k: int, rows: Tensor | None = None) -> Tensor:
        """int64 [n, k] (or of the given rows): the k most probable tokens, best first."""
        ...

    def keep(self, rows: Tensor) -> KeptRows:
        """What outlives this output of the given rows (int64 [m])."""
        ...


class Target(Protocol[State]):
    """The model whose output is preserved."""

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_context: int
    dtype: torch.dtype
    device: torch.device
    kernels: str
    """What runs its layers, as reports say it, and why where it is not the native path."""

    @property
    def bit_exact(self) -> bool:
        """Has a row the same bits in a tree as in plain decoding?"""
        ...

    def head_weight(self) -> Weight:
        """LM head rows [V, d] in token-id order, on the target's device."""
        ...

    def head_hash(self) -> str:
        """Hash that artifacts are bound to (checkpoints/fingerprint.py)."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings as the first layer sees them, [n, d]."""
        ...

    def embedding_rows(self, token_ids: Tensor) -> Tensor:
        """Rows of the embedding table as they are stored, [n, d]: without the factor that some
        families (Gemma) apply in ``embed``."""
        ...

    def norm(self, features: Tensor) -> Tensor:
        """The final norm: features [n, d] -> what the LM head reads [n, d]."""
        ...

    def begin(self, max_length: int, taps: tuple[int, ...] = ()) -> State:
        """Request state with a KV cache for ``max_length`` tokens plus one tree. ``taps``: the
        residual streams that the request's outputs carry, each as the number k of the decoder layer
        that it enters (0: the embeddings; ``num_layers``: what leaves the last layer, before the
        final norm). Raises DynaSpecError for a number outside the target."""
        ...

    def prefill(self, state: State, token_ids: Tensor) -> TargetOutput:
        """Append int64 [m] tokens to the cache; output for all m rows."""
        ...

    def verify(self, state: State, tree: DraftTree, start: int = 0) -> TargetOutput:
        """One pass over root and nodes with the tree mask; output for n+1 rows. Nothing is
        committed. With ``start`` the tree has grown since it was last verified: its first ``start``
        rows were verified then, and the pass and its output are of the rows behind them."""
        ...

    def commit(self, state: State, rows: Tensor) -> None:
        """Keep the KV of the given rows of the last verified tree (int64, root first, a path), drop
        the rest."""
        ...

    def rewind(self, state: State, length: int, max_length: int) -> None:
        """Make ``state`` that of another request whose first ``length`` tokens are the same: drop
        committed rows beyond them, and have room for ``max_length`` tokens plus one tree. What an
        interrupted pass left behind is dropped too. Raises DynaSpecError where fewer tokens are
        committed, or ``max_length`` does not fit the model's context."""
        ...

    def recall(self, kept: Sequence[KeptRows]) -> TargetOutput:
        """The output of kept rows, as if one pass had yielded them all."""
        ...


@dataclass(frozen=True)
class Decision:
    """A pass and its walk in one: the ``tree`` that was passed, ``path`` int64 [a] on the host and
    ``bonus`` as in a verdict (sampling/verify.py), ``used``: uniforms that the walk drew."""

    tree: DraftTree
    output: TargetOutput
    path: Tensor
    bonus: int
    used: int


@runtime_checkable
class DecidingTarget(Protocol):
    """A target that walks a tree where it verifies it, so that the host waits once: for a tree that
    it has not read yet with the tree."""

    def decide(
        self,
        state: Any,
        tree: DraftTree | UnreadTree,
        sampling: SamplingConfig,
        uniforms: Tensor | None,
    ) -> Decision | None:
        """``Target.verify`` and the walk of sampling/verify.py. ``uniforms`` float64 [m] on the
        host, m > rows of the tree: those that the request's source yields next; None: greedy. None
        is returned, and an unread tree left unread, where it has to be walked on the host; else
        ``Target.commit`` follows with the path. Raises NotFiniteError where logits that the walk
        looked at hold NaN, or a draft's scores."""
        ...


@dataclass(frozen=True)
class Committed:
    """What prefills and verifications settled: ``rows`` int64 [m] of the target's ``output`` (or
    of what was kept of several), a path in order, and ``tokens`` int64 [m] on the host, the token
    that follows each."""

    output: TargetOutput | KeptRows
    rows: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class DrafterHead:
    """An LM head that draft candidates are scored with. ``weight`` [R, d]; ``vocab``: the target's
    token of each row, None where row i is token i and R the target's vocabulary; ``own``: the rows
    are the drafter's, not the target's, so that what was trained on the target's hidden rows (a
    router) says nothing about these."""

    weight: Weight
    vocab: VocabMap | None
    vocab_size: int
    own: bool

    def describe(self) -> str:
        """In a few words, for reports."""
        whose = "own" if self.own else "the target's"
        return f"{whose}, {self.weight.rows:,} of {self.vocab_size:,} tokens"


@dataclass(frozen=True)
class DraftRows:
    """What a drafter's pass yields for w nodes. ``hidden`` [w, d]: what its head reads, norm
    applied. ``features`` [w, d] float32: the residual streams of the target that the pass began
    from, as predicted, which an early router reads; None where the drafter has no such thing."""

    hidden: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class ShortlistQuery:
    """One frontier: ``depth`` of the nodes to be proposed (1 = children of the root), ``tokens``
    int64 [w] of the frontier, and the features [w, d] that the drafter's pass began from
    (``DraftRows.features``)."""

    depth: int
    features: Tensor | None
    tokens: Tensor


@dataclass
class DraftHeadOutput:
    """Best candidates per frontier row: ``log_q`` float32 [w, k] (log-softmax over the shortlist
    plus the log of the estimated in-shortlist mass), ``ids`` int64 [w, k] target token ids,
    ``size`` the number of tokens scored.

    Where the whole distribution was asked for: ``log_probs`` float32 [w, S], the log-softmax over
    the shortlist (no mass added), and ``all_ids`` int64 [S], the distinct token id of each column.

    ``shared``: the frontier's tokens had a say in which tokens were scored, so what was drawn on
    one branch shows in the distributions of the others.
    """

    log_q: Tensor
    ids: Tensor
    size: int
    log_probs: Tensor | None = None
    all_ids: Tensor | None = None
    shared: bool = True


class Shortlist(Protocol[State, Chosen]):
    """A shortlisted LM head: chooses rows of the head for a frontier and scores them. ``size``:
    tokens that a draft step is meant to score, on average."""

    name: str
    size: int

    def begin(self, prompt: Tensor, prefill: TargetOutput) -> State:
        """Request state from prompt ids int64 [m] and the target's prefill output."""
        ...

    def select(self, state: State, query: ShortlistQuery) -> Chosen:
        """Choose the shortlist of this frontier."""
        ...

    def score(
        self,
        state: State,
        selection: Chosen,
        hidden: Tensor,
        k: int,
        whole: bool = False,
        temperature: float = 1.0,
    ) -> DraftHeadOutput:
        """GEMM + log-softmax (of the logits over ``temperature``) + top-k over the selection for
        ``hidden`` [w, d] (already normed); with ``whole`` the whole distribution too (for a policy
        that ``needs_distribution``)."""
        ...

    def contains(self, state: State, selection: Chosen, token_ids: Tensor) -> Tensor:
        """bool [m]: is a token in the selection (for the coverage statistic)."""
        ...

    def settle(self, state: State, tokens: Tensor) -> None:
        """Note tokens (int64 [m] on the host) that were settled without a draft."""
        ...

    def observe(
        self, state: State, tree: DraftTree, output: TargetOutput, path: Tensor, settled: Tensor
    ) -> None:
        """Learn from a verification: the tree, the target's output, the accepted rows and the
        tokens that it settled (accepted ones, then the bonus token; int64 [m] on the host)."""
        ...


@dataclass(frozen=True)
class Frontier:
    """Nodes to expand next. ``tokens`` int64 [w]; ``parents`` int64 [w]: for each the temporary
    row of its parent (-1: child of the root; otherwise an index into all rows of earlier frontiers
    of this round, in order); ``source`` int64 [w]: row of the previous output each node was
    proposed by."""

    tokens: Tensor
    parents: Tensor
    source: Tensor


class Drafter(Protocol[State]):
    """Proposes what the target may say next. A drafter object holds no state of a request."""

    name: str
    """What reports call it: "packaged", a folder, a hub name."""

    folder: Path | None
    """Where its files are, or its only one, for provenance; None where there are none."""

    @property
    def head(self) -> DrafterHead | None:
        """The LM head that reads its rows; None: it scores tokens itself, without a shortlist."""
        ...

    taps: tuple[int, ...]
    """Residual streams of the target that it reads (``Target.begin``)."""

    def describe(self) -> dict[str, Any]:
        """What settings and reports say about it: "drafter_kind" and facts of that kind, as JSON
        values. "drafter_notes", where it is there, is a list of sentences that the user is told:
        what was chosen where the drafter's files could mean more than one thing."""
        ...

    def begin(self, prompt: Tensor, max_length: int) -> State:
        """Request state with the drafter's own caches. prompt int64 [m]; what the target made of it
        comes with the first ``extend``."""
        ...

    def extend(self, state: State, committed: Committed) -> DraftRows | DraftHeadOutput:
        """Consume what was settled; one row (or its candidates) for the children of the root, the
        last settled token. Temporary tree rows are dropped first."""
        ...

    def step(self, state: State, frontier: Frontier) -> DraftRows | DraftHeadOutput:
        """One draft step over a frontier: rows (or candidates) for the children of its nodes."""
        ...

    def observe(self, state: State, tree: DraftTree, path: Tensor) -> None:
        """Learn from a verification: the tree and its accepted rows, root first. Most have nothing
        to learn."""
        ...

    def rewind(self, state: State, prompt: Tensor, max_length: int) -> int:
        """Make ``state`` that of another request whose first tokens are ``prompt`` int64 [m], as
        if it had read them and nothing else, and had learned nothing; it has read tokens that begin
        so, or some of them. Returns how many of them it knows now (m at most): what follows comes
        with the next ``extend``. 0: it cannot, and the request needs a state of its own."""
        ...


class TreePolicy(Protocol[State]):
    """Grows a tree from scored candidates, or stops. Its state belongs to one draft round; the
    policy object to one request, since a policy that samples holds that request's random numbers.

    ``width``: the k of ``Shortlist.score``. ``needs_distribution``: children are sampled, so every
    candidate output must carry the whole distribution.
    """

    name: str
    width: int
    needs_distribution: bool

    def begin(self, root: int) -> State: ...

    def grow(self, state: State, candidates: DraftHeadOutput) -> Frontier | None:
        """Take the candidates of the last frontier (first: of the root), return the next frontier
        or None to stop."""
        ...

    def finish(self, state: State) -> DraftTree: ...
