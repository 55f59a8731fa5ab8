"""The seam of the benchmark: what an arm must do, and the trace it leaves.

The runner, the metrics and the report know these types and no engine, so that a peer program or a
scripted trace takes the place of the engine without a change elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dynaspec_cli.engine.events import StepStats
from dynaspec_cli.errors import DynaSpecError


@dataclass(frozen=True)
class TurnTrace:
    """One answer. ``token_ids`` are the generated ids, the first one from the prefill;
    ``prefill_s`` runs from the call to the first token, ``decode_s`` from the first token to the
    last (seconds). ``first_tokens``: ids that came with the first target pass (one, except for
    peers that draft before it). ``steps`` is empty for arms that do not speculate or do not tell
    (peers)."""

    prompt_tokens: int
    token_ids: tuple[int, ...]
    prefill_s: float
    decode_s: float
    finish_reason: str
    steps: tuple[StepStats, ...] = ()
    first_tokens: int = 1

    @property
    def decode_tokens(self) -> int:
        """The same counter for every arm: ids emitted after those of the first pass."""
        return max(len(self.token_ids) - self.first_tokens, 0)


class Method(Protocol):
    """One arm. ``name`` is its SPEC."""

    name: str

    def prepare(self) -> None:
        """Build what the arm needs (load a shortlist, open a peer); not timed."""
        ...

    def run(self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int) -> TurnTrace:
        """Generate from token ids. State belongs to the call: nothing of it reaches the next
        one."""
        ...


class Codec(Protocol):
    """Text to ids and back, by the target's tokenizer."""

    has_chat_template: bool

    def encode(self, text: str, start: bool) -> list[int]:
        """Ids of a text; ``start`` puts the begin-of-text token first where the model has one."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation by the chat template, up to where the answer begins."""
        ...


class Reference(Protocol):
    """The target itself, asked once for one position."""

    dtype: str
    bit_exact: bool
    """Has a row the same bits in every pass of the target? Then our own arms cannot tie."""
    eos_ids: frozenset[int]

    def gaps(self, context: Sequence[int], candidates: Sequence[int]) -> tuple[float, list[float]]:
        """One plain target pass over ``context``. Returns the gap between the two largest logits of
        the next position, and for each candidate id the largest logit minus its own (float32)."""
        ...


@dataclass(frozen=True)
class Sample:
    """A row of ``samples.jsonl``: one prompt, one method, one repeat; a trace for each turn."""

    suite: str
    id: str
    task: str
    method: str
    repeat: int
    turns: tuple[TurnTrace, ...]
    scripts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Script -> (covered positions, positions); see scripts.py."""
    texts: tuple[str, ...] = ()
    exact: Mapping[str, Any] | None = None
    """Verdict of the exactness check: see exactness.py."""

    @property
    def steps(self) -> tuple[StepStats, ...]:
        return tuple(step for turn in self.turns for step in turn.steps)

    @property
    def decode_tokens(self) -> int:
        return sum(turn.decode_tokens for turn in self.turns)

    @property
    def new_tokens(self) -> int:
        return sum(len(turn.token_ids) for turn in self.turns)

    @property
    def decode_s(self) -> float:
        return sum(turn.decode_s for turn in self.turns)

    @property
    def prefill_s(self) -> float:
        return sum(turn.prefill_s for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "suite": self.suite,
            "id": self.id,
            "task": self.task,
            "method": self.method,
            "repeat": self.repeat,
            "turns": [_turn_to_json(turn) for turn in self.turns],
            "scripts": {name: list(pair) for name, pair in self.scripts.items()},
            "texts": list(self.texts),
            "exact": None if self.exact is None else dict(self.exact),
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Sample:
        """Inverse of ``to_json``; DynaSpecError where the row is not one of this schema."""
        try:
            return Sample(
                suite=row["suite"],
                id=row["id"],
                task=row["task"],
                method=row["method"],
                repeat=row["repeat"],
                turns=tuple(_turn_from_json(turn) for turn in row["turns"]),
                scripts={name: (pair[0], pair[1]) for name, pair in row["scripts"].items()},
                texts=tuple(row["texts"]),
                exact=row["exact"],
            )
        except (KeyError, TypeError, IndexError) as error:
            raise DynaSpecError(
                "samples.jsonl: expected a row of schema 1, got one that lacks or misplaces "
                f"{error}"
            ) from error


def _turn_to_json(turn: TurnTrace) -> dict[str, Any]:
    return {
        "prompt_tokens": turn.prompt_tokens,
        "token_ids": list(turn.token_ids),
        "prefill_s": turn.prefill_s,
        "decode_s": turn.decode_s,
        "finish_reason": turn.finish_reason,
        "first_tokens": turn.first_tokens,
        "steps": [
            {
                "drafted": step.drafted,
                "drawn": step.drawn,
                "distinct": step.distinct,
                "accepted": step.accepted,
                "depth": step.depth,
                "sizes": list(step.shortlist_sizes),
                "covered": None if step.covered is None else [int(hit) for hit in step.covered],
                "ms": {phase: round(1000 * s, 4) for phase, s in step.seconds.items()},
            }
            for step in turn.steps
        ],
    }


def _turn_from_json(turn: Mapping[str, Any]) -> TurnTrace:
    return TurnTrace(
        prompt_tokens=turn["prompt_tokens"],
        token_ids=tuple(turn["token_ids"]),
        prefill_s=turn["prefill_s"],
        decode_s=turn["decode_s"],
        finish_reason=turn["finish_reason"],
        first_tokens=turn["first_tokens"],
        steps=tuple(
            StepStats(
                drafted=step["drafted"],
                drawn=step["drawn"],
                distinct=step["distinct"],
                accepted=step["accepted"],
                depth=step["depth"],
                shortlist_sizes=tuple(step["sizes"]),
                covered=None if step["covered"] is None else tuple(map(bool, step["covered"])),
                seconds={phase: ms / 1000 for phase, ms in step["ms"].items()},
            )
            for step in turn["steps"]
        ),
    )
