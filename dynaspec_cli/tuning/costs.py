"""The table of costs: a pass of the target by rows, a round that drafts, a draft step, and what the
drafter reads, in milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise

from dynaspec_cli.errors import DynaSpecError

SMALL_ROWS = 5
ROWS = (1, 2, 3, 5, 9, 17)
"""Rows of the passes that are measured: the root and 0, 1, 2, 4, ... nodes. Beyond them a pass is
arithmetic, and goes on as the last two say."""


@dataclass(frozen=True)
class CostTable:
    """``rows`` ascending from 1; ``pass_ms`` of the target over so many rows, its head included;
    ``draft_ms`` of one draft step, 0 for a drafter that runs no model; ``read_ms`` of a settled
    token that the drafter reads, many of them in one pass; ``base_ms`` of a round that drafts,
    whatever its steps and rows: its shortlist follows the text and learns from the verification.
    Raises DynaSpecError for numbers that no measurement gives."""

    rows: tuple[int, ...]
    pass_ms: tuple[float, ...]
    draft_ms: float
    read_ms: float = 0.0
    base_ms: float = 0.0

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in pairwise(self.rows)) and self.rows[:1] == (1,)
        positive = all(math.isfinite(ms) and ms > 0 for ms in self.pass_ms)
        rest = (self.draft_ms, self.read_ms, self.base_ms)
        drafts = all(math.isfinite(ms) and ms >= 0 for ms in rest)
        if not (ascending and positive and drafts and len(self.rows) == len(self.pass_ms)):
            raise DynaSpecError(
                f"cost table: expected rows ascending from 1 with positive milliseconds, got {self}"
            )

    def verify_ms(self, rows: int) -> float:
        """A pass over ``rows`` rows: interpolated, and beyond the table as its last two say. Never
        less than fewer rows cost, whatever noise says."""
        if rows not in self._passes:
            self._passes[rows] = self._interpolated(rows)
        return self._passes[rows]

    @cached_property
    def _passes(self) -> dict[int, float]:
        """By rows, those that were asked for: every round asks for many."""
        return {}

    def _interpolated(self, rows: int) -> float:
        least = 0.0
        for (a, ms_a), (b, ms_b) in pairwise(zip(self.rows, self.pass_ms, strict=True)):
            least = max(least, ms_a)
            if rows <= b:
                return max(least, ms_a + (ms_b - ms_a) * (rows - a) / (b - a))
        if len(self.rows) == 1:
            return self.pass_ms[0]
        a, b = self.rows[-2:]
        slope = max(0.0, (self.pass_ms[-1] - self.pass_ms[-2]) / (b - a))
        return max(least, self.pass_ms[-1]) + slope * max(0, rows - b)

    @property
    def row_price(self) -> float:
        """What one more row of a small pass costs, in passes over one row: a node that is less
        likely to be accepted does not pay."""
        if len(self.rows) == 1:
            return 0.0
        rows = max(self.rows[1], max(n for n in self.rows if n <= SMALL_ROWS))
        return (self.verify_ms(rows) / self.verify_ms(1) - 1.0) / (rows - 1)

    def round_ms(self, nodes: int, steps: float, read: int = 1) -> float:
        """A round whose drafter reads ``read`` settled tokens, drafts ``steps`` steps (the first of
        which reads one token) and verifies ``nodes`` nodes."""
        drafting = self.draft_ms * steps + (self.base_ms if steps else 0.0)
        return self.verify_ms(nodes + 1) + drafting + self.read_ms * (read - 1)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """Raises DynaSpecError or ValueError for anything that ``to_json`` does not write."""
        try:
            data = json.loads(text)
            rows, ms = data["rows"], data["pass_ms"]
            rest = (float(data[name]) for name in ("draft_ms", "read_ms", "base_ms"))
            return cls(tuple(map(int, rows)), tuple(map(float, ms)), *rest)
        except (KeyError, TypeError) as error:
            raise DynaSpecError(f"cost table: {error!r} in {text[:60]!r}") from error


def steps_of(nodes: int, depth: int) -> float:
    """Draft steps that a tree of ``nodes`` nodes usually takes, where none was seen: a tree that
    doubles grows by a level."""
    return 0.0 if nodes == 0 else min(float(depth), 1.0 + math.log2(nodes))


def prefix_sums(values: Sequence[float]) -> list[float]:
    """Sums of the first 0, 1, 2, ... of ``values``."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return sums
