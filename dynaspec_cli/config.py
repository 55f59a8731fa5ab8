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


DRAWS = ("auto", "sample", "best")
"""``auto``: sample where the target samples, best where it is greedy."""


VERIFICATIONS = ("siblings", "traversal")
"""How drawn children are verified: child by child from the root, or path by path from the
leaves."""


NODES = 8
"""Of a tree whose size nobody gave and that cannot adapt."""
MOST_NODES = 16
"""Of a tree whose size adapts."""
FIXED_TREES = ("specinfer", "auto")
"""Trees that do not adapt: one whose expansion may be the user's own, and one that chooses by the
clock."""


@dataclass(frozen=True)
class TreeConfig:
    """Shape of the draft tree, and how it is filled.

    ``size``: nodes verified in one pass, the root not counted. ``depth``: levels below the root
    (= draft steps). ``width``: children proposed per node, and nodes expanded per level.
    ``threshold``: a probability in (0, 1] below which drafting stops (dyspec: of a slot; ddd: of
    the beam); None: the policy's own.

    ``draw``: whether children are sampled from the drafter's distribution or are its best tokens
    (``DRAWS``). ``draft_temperature``: of that distribution (> 0); None: the target's for draws,
    ``SamplingConfig.draft_temperature`` for best tokens. ``acceptance``: sequoia's probability that
    the b-th child tried is the one accepted, each in [0, 1], of sum at most 1; None: as measured
    for the drafter. ``expansion``: specinfer's children per node at each level; None: the paper's,
    cut or extended to ``size``. ``ddd_steps``: draft steps after which ddd tests its beam; None:
    each one. ``verification``: of drawn children (``VERIFICATIONS``).

    ``size`` None: how many nodes a round has, none to ``MOST_NODES``, follows from what rounds cost
    on this machine and what the request's rounds have brought (tuning/pace.py); where nothing is
    known of the machine, and for ``FIXED_TREES``, ``NODES``. ``limit``: of a tree that adapts, the
    most nodes that it may have in another round: dyspec's threshold then follows from that, since
    the threshold of a tree of two would stop it after its first node.

    8 nodes by default there: on a CPU a pass over 9 rows costs what one over a single row does, one
    over 17 a quarter more, which the longer accepted paths do not repay
    (docs/internals/performance.md).
    """

    policy: str = "dyspec"
    size: int | None = None
    depth: int = 6
    width: int = 4
    threshold: float | None = None
    draw: str = "auto"
    draft_temperature: float | None = None
    acceptance: tuple[float, ...] | None = None
    expansion: tuple[int, ...] | None = None
    ddd_steps: tuple[int, ...] | None = None
    verification: str = "siblings"
    limit: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.size is None or 1 <= self.size <= 1024,
            f"--tree-size: expected 1 to 1024 nodes, got {self.size}",
        )
        _require(1 <= self.depth <= 64, f"--tree-depth: expected 1 to 64 levels, got {self.depth}")
        _require(
            1 <= self.width <= 64, f"--tree-width: expected 1 to 64 children, got {self.width}"
        )
        _require(
            self.threshold is None or 0 < self.threshold <= 1,
            f"--tree-threshold: expected a probability above 0 and at most 1, got {self.threshold}",
        )
        _require(
            self.draw in DRAWS, f"--tree-draw: expected one of {', '.join(DRAWS)}, got {self.draw}"
        )
        _require(
            self.verification in VERIFICATIONS,
            f"--tree-verification: expected one of {', '.join(VERIFICATIONS)}, got "
            f"{self.verification}",
        )
        heat, a = self.draft_temperature, self.acceptance
        _require(
            heat is None or (math.isfinite(heat) and heat >= LOWEST_TEMPERATURE),
            f"--draft-temperature: expected a finite number of at least {LOWEST_TEMPERATURE:g}, "
            f"got {heat}",
        )
        _require(
            a is None or (bool(a) and all(0 <= x <= 1 for x in a) and sum(a) <= 1 + 1e-9),
            f"--tree-acceptance: expected numbers in [0, 1] of sum at most 1, got {_listed(a)}",
        )
        _require(
            self.expansion is None
            or (bool(self.expansion) and all(1 <= k <= 64 for k in self.expansion)),
            "--tree-expansion: expected 1 to 64 children at each level, got "
            f"{_listed(self.expansion)}",
        )
        _require(
            self.ddd_steps is None
            or (bool(self.ddd_steps) and all(step >= 1 for step in self.ddd_steps)),
            f"--ddd-steps: expected draft steps of at least 1, got {_listed(self.ddd_steps)}",
        )

    @property
    def adapts(self) -> bool:
        """Does the size follow from the machine and the request?"""
        return self.size is None and self.policy not in FIXED_TREES

    @property
    def nodes(self) -> int:
        """The size of a tree that does not adapt."""
        return NODES if self.size is None else self.size

    def draws(self, sampling: SamplingConfig) -> bool:
        """Are children sampled under this target?"""
        return not sampling.greedy if self.draw == "auto" else self.draw == "sample"

    def temperature(self, sampling: SamplingConfig) -> float:
        """Temperature of the drafter's distribution, for draws or for the scores of best tokens."""
        if self.draft_temperature is not None:
            return self.draft_temperature
        if self.draws(sampling) and not sampling.greedy:
            return sampling.temperature
        return sampling.draft_temperature


def _listed(values: tuple[float, ...] | tuple[int, ...] | None) -> str:
    return ",".join(map(str, values or ())) or "none"


@dataclass(frozen=True)
class ShortlistConfig:
    """Which part of the vocabulary the drafter scores. ``method``: a name, a path or NAME=FOLDER
    (shortlist/registry.py); "auto": the one that suits drafter and target. ``size`` is in tokens;
    None takes the method's default. ``head``: the weight format that the drafter's head is kept in
    (weights/registry.py); "stored": as it is."""

    method: str = "auto"
    size: int | None = None
    head: str = "stored"

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
