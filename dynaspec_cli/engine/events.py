"""What the engine yields: events of a running request, and the result they end in.

The engine prints nothing; the command line, the benchmark and the Python API read these objects.
None of them holds a tensor, so that this module (and the whole user interface) needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

SCHEMA = 1
"""Version of every JSON object that dynaspec prints."""

PHASES = ("draft_body", "router", "head", "tree", "verify", "commit", "other")
"""Phases of a step, in the order in which reports list them."""

FinishReason = Literal["eos", "length", "stop", "interrupted"]


@dataclass(frozen=True)
class StepStats:
    """One step: the draft steps that grew a tree, its verification, its commit.

    In autoregressive decoding a step is one target pass (``drafted`` and ``accepted`` are 0).
    """

    drafted: int
    """Nodes verified, the root not counted."""

    accepted: int
    """Draft tokens accepted, the bonus token not counted. Counted up to and including an
    end-of-text token; a cut by the length limit or a stop text does not shorten it."""

    depth: int
    """Levels of the verified tree below its root."""

    shortlist_sizes: tuple[int, ...] = ()
    """Tokens scored by each draft step (each call of the shortlisted head)."""

    covered: tuple[bool, ...] | None = None
    """For the 1st, 2nd, ... token that this step settled: was the target's token in the shortlist
    of the draft step for its depth? Positions deeper than the last draft step are left out.
    None where coverage was not measured."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by phase (``PHASES``)."""

    drawn: int = 0
    """Draws of a policy that samples children, repeated and discarded ones too; 0: none samples."""

    distinct: int = 0
    """Nodes that the draws gave; those of them that were verified are ``drafted``."""

    def up_to(self, tokens: int) -> StepStats:
        """The step as if it had settled its first ``tokens`` tokens only."""
        covered = None if self.covered is None else self.covered[:tokens]
        return replace(self, accepted=min(self.accepted, tokens), covered=covered)

    def without(self, seconds: float) -> StepStats:
        """The step without time that was spent outside the engine, which its clock took for
        "other"."""
        own = {**self.seconds, "other": max(self.seconds.get("other", 0.0) - seconds, 0.0)}
        return replace(self, seconds=own)


@dataclass(frozen=True)
class NoticeEvent:
    """Something the user should see that is no error, e.g. that the pure-PyTorch fallback runs."""

    message: str


@dataclass(frozen=True)
class TokensEvent:
    """New tokens. ``text`` is what may be printed now; it can lag behind ``token_ids`` (half a
    character, the beginning of a possible stop text) and is never taken back. ``step`` is None for
    the token that the prefill yields."""

    token_ids: tuple[int, ...]
    text: str
    step: StepStats | None = None


@dataclass(frozen=True)
class Divergence:
    """First position at which two decodings differ: index into ``token_ids``, the two ids, and the
    target's logit of its own choice minus its logit of the other id there (>= 0).

    ``tie``: the gap is below the bound within which the order of summation decides (stats.py).
    """

    position: int
    token_id: int
    ar_token_id: int
    logit_gap: float
    tie: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "token_id": self.token_id,
            "ar_token_id": self.ar_token_id,
            "logit_gap": self.logit_gap,
            "tie": self.tie,
        }


@dataclass(frozen=True)
class Comparison:
    """Speculative against autoregressive decoding of the same prompt.

    ``speedup``: ratio of decode tokens per second (None: nothing was decoded).
    ``first_divergence`` is None where the token ids are identical."""

    speedup: float | None
    identical: bool
    first_divergence: Divergence | None
    autoregressive: GenerationResult


@dataclass(frozen=True)
class GenerationResult:
    """A finished (or interrupted) request; every number is defined in engine/stats.py."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    finish_reason: FinishReason
    tokens_per_second: float
    time_to_first_token_s: float
    load_s: float
    decode_s: float
    mean_acceptance_length: float
    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_drawn: int
    num_distinct: int
    mean_shortlist_size: float | None
    phase_ms: Mapping[str, float]
    acceptance_by_position: tuple[float, ...]
    settings: Mapping[str, Any]
    cached_prompt_tokens: int = 0
    """Tokens of the prompt that an earlier request of the conversation had read."""
    steps: tuple[StepStats, ...] = ()
    """The trace the numbers were computed from; not part of the JSON object."""
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that ``dynaspec generate --json`` prints."""
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "new_tokens": self.new_tokens,
            "finish_reason": self.finish_reason,
            "tokens_per_second": self.tokens_per_second,
            "time_to_first_token_s": self.time_to_first_token_s,
            "load_s": self.load_s,
            "decode_s": self.decode_s,
            "mean_acceptance_length": self.mean_acceptance_length,
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_draft_tokens": self.num_accepted_draft_tokens,
            "num_drawn": self.num_drawn,
            "num_distinct": self.num_distinct,
            "mean_shortlist_size": self.mean_shortlist_size,
            "phase_ms": dict(self.phase_ms),
            "acceptance_by_position": list(self.acceptance_by_position),
            "settings": dict(self.settings),
        }
        if self.comparison is not None:
            divergence = self.comparison.first_divergence
            data["speedup"] = self.comparison.speedup
            data["identical"] = self.comparison.identical
            data["first_divergence"] = None if divergence is None else divergence.to_json()
            data["autoregressive"] = {
                "tokens_per_second": self.comparison.autoregressive.tokens_per_second,
                "new_tokens": self.comparison.autoregressive.new_tokens,
                "decode_s": self.comparison.autoregressive.decode_s,
                "text": self.comparison.autoregressive.text,
            }
        return data


@dataclass(frozen=True)
class DoneEvent:
    """The last event of a request."""

    result: GenerationResult


Event = NoticeEvent | TokensEvent | DoneEvent
