"""What a tree policy is made from; part of the interface for other packages' trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import TreePolicy
from dynaspec_cli.tree.sampled import Drawing


@dataclass(frozen=True)
class TreeRequest:
    """``config``: what the user asked for. ``acceptance``: by position among siblings, the user's
    or as measured for the drafter (tree/acceptance.py). ``drawing``: how a policy that samples its
    children draws them; None where they are to be the best tokens, as for a ``greedy`` target, and
    for a drafter that has no distribution to draw from. A policy that ignores ``drawing`` proposes
    point masses, which verification handles at every temperature."""

    config: TreeConfig
    acceptance: Sequence[float]
    drawing: Drawing | None
    greedy: bool = True


TreeFactory = Callable[[TreeRequest], TreePolicy]
"""Makes the policy of one request; raises ``UsageError`` for settings that cannot work."""
