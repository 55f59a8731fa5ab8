"""The one list of tree policies; the command line's choices are read from it, so importing this
module imports no torch (a test of the command line checks it): factories import their policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import UsageError

if TYPE_CHECKING:
    from dynaspec_cli.protocols import TreePolicy


def _chain(config: TreeConfig, sampling: SamplingConfig) -> TreePolicy:
    from dynaspec_cli.tree.chain import Chain

    return Chain(config)


def _eagle2(config: TreeConfig, sampling: SamplingConfig) -> TreePolicy:
    from dynaspec_cli.tree.eagle2 import Eagle2

    return Eagle2(config)


@dataclass(frozen=True)
class TreeEntry:
    """A policy's one-line ``description`` and its ``factory``. A policy object serves one request
    (it may hold that request's random numbers), with one state a draft round."""

    description: str
    factory: Callable[[TreeConfig, SamplingConfig], TreePolicy]


TREES: dict[str, TreeEntry] = {
    "chain": TreeEntry("one branch of --tree-depth tokens", _chain),
    "eagle2": TreeEntry(
        "expand the most probable nodes, verify the best --tree-size (EAGLE-2)",
        _eagle2,
    ),
}


def tree_names() -> tuple[str, ...]:
    """Names that ``--tree`` takes."""
    return tuple(TREES)


def create_tree(config: TreeConfig, sampling: SamplingConfig) -> TreePolicy:
    """The policy that ``config.policy`` names, for one request. Unknown names raise UsageError."""
    entry = TREES.get(config.policy)
    if entry is None:
        raise UsageError(f"--tree: expected one of {', '.join(TREES)}, got {config.policy!r}")
    return entry.factory(config, sampling)
