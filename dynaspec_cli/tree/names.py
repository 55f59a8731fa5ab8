"""The one list of tree policies, for the command line; importing this module imports no torch.

registry.py has a factory for each of these names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TreeEntry:
    """A policy's one-line ``description``."""

    description: str


TREES: dict[str, TreeEntry] = {
    "chain": TreeEntry("one branch of --tree-depth tokens"),
    "specinfer": TreeEntry("a fixed number of children at each level (SpecInfer)"),
    "sequoia": TreeEntry("the fixed shape that is optimal for an acceptance by position (Sequoia)"),
    "eagle2": TreeEntry("expand the most probable nodes, verify the best --tree-size (EAGLE-2)"),
    "ddd": TreeEntry("eagle2 for as long as its beam stays probable (Dynamic Depth Decoding)"),
    "dyspec": TreeEntry(
        "grow where verification is expected to arrive, above a threshold (DySpec)"
    ),
    "auto": TreeEntry(
        "eagle2 with the depth and size that give most tokens per second (greedy only)"
    ),
}


def tree_names() -> tuple[str, ...]:
    """Names that ``--tree`` takes."""
    return tuple(TREES)
