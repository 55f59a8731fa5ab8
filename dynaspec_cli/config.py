"""Frozen settings of a request; every value is checked where it is made.

The command line, the benchmark and the Python API all build these objects, so that an impossible
value has one place where it is refused and one message that says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dynaspec_cli.errors import UsageError

GREEDY_DRAFT_TEMPERATURE = 0.75
"""Where the drafter's log-probabilities best predict a greedy target (docs/methods/trees.md)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


LOWEST_TEMPERATURE = 1e-6
"""Below it logits divided by the temperature could overflow float32."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the *target's* distribution is formed; ``temperature`` 0 means greedy.

    ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch the respective filter off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        t = self.temperature
        _require(
            math.isfinite(t) and (t == 0 or t >= LOWEST_TEMPERATURE),
            f"--temperature: expected a finite number of at least {LOWEST_TEMPERATURE:g}, or 0 "
            f"(greedy), got {t}",
        )
        _require(self.top_k >= 0, f"--top-k: expected 0 (off) or more, got {self.top_k}")
        _require(0 < self.top_p <= 1, f"--top-p: expected a number in (0, 1], got {self.top_p}")
        _require(0 <= self.min_p <= 1, f"--min-p: expected a number in [0, 1], got {self.min_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def draft_temperature(self) -> float:
        """Temperature of the drafter's distribution, from which a tree takes the chance that a
        token is accepted. The drafter is trained towards the target's distribution, so at
        temperature 1 it estimates that; a greedy target takes its best token always, and the
        drafter's best is right more often than the drafter's probability says."""
        return min(1.0, max(GREEDY_DRAFT_TEMPERATURE, self.temperature))


@dataclass(frozen=True)
class TreeConfig:
    """Shape of the draft tree.

    ``size``: nodes verified in one pass, the root not counted. ``depth``: levels below the root
    (= draft steps). ``width``: children proposed per node, and nodes expanded per level.
    ``threshold``: a probability in (0, 1] below which drafting stops (dyspec: of a slot; ddd: of
    the beam); None: the policy's own.

    8 nodes by default: on a CPU a pass over 9 rows costs what one over a single row does, one over
    17 a quarter more, which the longer accepted paths do not repay (docs/internals/performance.md).
    """

    policy: str = "dyspec"
    size: int = 8
    depth: int = 6
    width: int = 4
    threshold: float | None = None

    def __post_init__(self) -> None:
        _require(1 <= self.size <= 1024, f"--tree-size: expected 1 to 1024 nodes, got {self.size}")
        _require(1 <= self.depth <= 64, f"--tree-depth: expected 1 to 64 levels, got {self.depth}")
        _require(
            1 <= self.width <= 64, f"--tree-width: expected 1 to 64 children, got {self.width}"
        )
        _require(
            self.threshold is None or 0 < self.threshold <= 1,
            f"--tree-threshold: expected a probability above 0 and at most 1, got {self.threshold}",
        )


@dataclass(frozen=True)
class ShortlistConfig:
    """Which part of the vocabulary the drafter scores. ``method``: a name, a path or NAME=FOLDER
    (shortlist/names.py); "auto": the one that suits drafter and target. ``size`` is in tokens; None
    takes the method's default."""

    method: str = "auto"
    size: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.size is None or self.size >= 1,
            f"--shortlist-size: expected at least 1 token, got {self.size}",
        )


@dataclass(frozen=True)
class GenerationConfig:
    """One request: how much to generate, how to sample, how to draft."""

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    shortlist: ShortlistConfig = field(default_factory=ShortlistConfig)

    def __post_init__(self) -> None:
        _require(
            self.max_new_tokens >= 1,
            f"--max-new-tokens: expected at least 1, got {self.max_new_tokens}",
        )
        _require(all(self.stop), "--stop: expected a non-empty text, got an empty one")
