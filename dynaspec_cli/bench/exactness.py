"""Is an answer the target's own? Identical, a numerical tie, or a mismatch.

Greedy answers are compared id by id with the autoregressive answer to the same context. At the
first difference the target is asked once, by a plain pass over the common prefix: both ids must
lie within ``bound`` of the largest logit. Then the order of summation (one row or n rows a pass)
may decide, and the difference is a *tie*; everything after it follows from another prefix and is
not compared. Any other difference is a *mismatch*: a bug. Where the target gives a row the same
bits in every pass, our own arms have nothing to tie over, and every difference is one; a peer
computes in a numerics of its own. A gap between the two ids says less than this: two wrong ids can
be close to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynaspec_cli.bench.method import Reference, TurnTrace
from dynaspec_cli.engine.stats import first_difference, is_tie

IDENTICAL, TIE, MISMATCH = "identical", "tie", "mismatch"


@dataclass(frozen=True)
class TurnVerdict:
    """``position`` indexes the answer's ids; an id is None where that answer had already ended.
    ``logit_gap`` is the largest logit minus the smaller of the two ids' logits, ``top2_gap`` the
    gap between the two largest logits there; None where no pass was needed or could tell."""

    verdict: str
    position: int | None = None
    token_id: int | None = None
    ar_token_id: int | None = None
    logit_gap: float | None = None
    top2_gap: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "position": self.position,
            "token_id": self.token_id,
            "ar_token_id": self.ar_token_id,
            "logit_gap": self.logit_gap,
            "top2_gap": self.top2_gap,
        }


def compare_turn(
    context: Sequence[int],
    answer: TurnTrace,
    own: TurnTrace,
    reference: Reference,
    peer: bool = False,
) -> TurnVerdict:
    """Verdict on ``answer`` (a peer's?) against the autoregressive answer ``own``, both to
    ``context``."""
    position = first_difference(answer.token_ids, own.token_ids)
    if position is None:
        return TurnVerdict(IDENTICAL)
    ids = [_next_ids(trace, position, reference) for trace in (answer, own)]
    if not ids[0] or not ids[1]:
        # One answer ended early for another reason than end-of-text: nothing the target chose.
        return TurnVerdict(MISMATCH, position, *(i[0] if i else None for i in ids))
    prefix = [*context, *own.token_ids[:position]]
    top2_gap, gaps = reference.gaps(prefix, [*ids[0], *ids[1]])
    split = len(ids[0])
    gap = max(min(gaps[:split]), min(gaps[split:]))
    may_tie = peer or not reference.bit_exact
    verdict = TIE if may_tie and is_tie(gap, reference.dtype) else MISMATCH
    return TurnVerdict(verdict, position, ids[0][0], ids[1][0], gap, top2_gap)


def _next_ids(trace: TurnTrace, position: int, reference: Reference) -> list[int]:
    """The id at ``position``; where the answer ended there with end-of-text, that it was one of
    these."""
    if position < len(trace.token_ids):
        return [trace.token_ids[position]]
    return sorted(reference.eos_ids) if trace.finish_reason == "eos" else []


def verdict_of(turns: Sequence[TurnVerdict]) -> dict[str, Any]:
    """What a sample keeps: the worst verdict, and each turn's."""
    verdicts = {turn.verdict for turn in turns}
    worst = next(v for v in (MISMATCH, TIE, IDENTICAL) if v in verdicts)
    return {"verdict": worst, "turns": [turn.to_json() for turn in turns]}
