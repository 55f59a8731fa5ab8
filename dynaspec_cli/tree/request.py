"""What a tree policy is made from; part of the interface for other packages' trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.protocols import TreePolicy
from dynaspec_cli.tree.options import TreeOptions
from dynaspec_cli.tree.sampled import Drawing


@dataclass(frozen=True)
class TreeRequest:
    """``config``: size, depth, width and threshold as the user gave them. ``options``: settings of
    single policies. ``drawing``: how a policy that samples its children draws them; None for a
    ``greedy`` target, whose drafts are never sampled, and for a drafter that has no distribution to
    draw from. A policy that ignores ``drawing`` proposes point masses, which verification handles
    at every temperature."""

    config: TreeConfig
    options: TreeOptions
    drawing: Drawing | None
    greedy: bool = True


TreeFactory = Callable[[TreeRequest], TreePolicy]
"""Makes the policy of one request; raises ``UsageError`` for settings that cannot work."""
