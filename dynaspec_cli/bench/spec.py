"""The grammar of ``--method``: what a benchmark compares, in one word.

``SPEC := "ar" | PEER | [DRAFTER ":"] SHORTLIST ["@" SIZE] "+" TREE ["@" NODES | "@auto"]``
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dynaspec_cli.errors import UsageError
from dynaspec_cli.shortlist.registry import SHORTLISTS
from dynaspec_cli.tree.registry import TREES

PEERS = (
    "transformers",
    "transformers-lookup",
    "transformers-assisted",
    "llama.cpp",
    "llama.cpp-lookup",
    "llama.cpp-draft",
)
ASSISTED = ("transformers-assisted", "llama.cpp-draft")
"""Peers that draft with the model of ``--assistant``."""
ADAPTS = 0
"""``nodes`` of a tree whose size follows from what rounds cost and have brought, as by default in
``dynaspec generate``; "auto" in a spec."""

_HELP = (
    f"ar, SHORTLIST[@SIZE]+TREE[@NODES] (as in dynaspec@4096+eagle2@16) or one of "
    f"{', '.join(PEERS)}"
)


@dataclass(frozen=True)
class MethodSpec:
    """One arm of a benchmark. ``kind`` is "ar", "peer" or "speculative".

    ``shortlist`` is a method's name or the path of a bundle or token map; ``drafter`` is None for
    the drafter that the run loaded. ``shortlist_size`` and ``nodes`` are None where the spec
    leaves them to the run's defaults; ``nodes`` may be ``ADAPTS``.
    """

    kind: str
    peer: str | None = None
    drafter: str | None = None
    shortlist: str | None = None
    shortlist_size: int | None = None
    tree: str | None = None
    nodes: int | None = None

    def __str__(self) -> str:
        if self.kind == "ar":
            return "ar"
        if self.kind == "peer":
            return str(self.peer)
        size = "" if self.shortlist_size is None else f"@{self.shortlist_size}"
        nodes = "" if self.nodes is None else f"@{self.nodes or 'auto'}"
        prefix = "" if self.drafter is None else f"{self.drafter}:"
        return f"{prefix}{self.shortlist}{size}+{self.tree}{nodes}"

    @property
    def family(self) -> tuple[str | None, str | None, int | None]:
        """What recovery holds fixed: drafter, tree and nodes; only the shortlist differs."""
        return (self.drafter, self.tree, self.nodes)

    def with_nodes(self, nodes: int | None) -> MethodSpec:
        """The same spec with the run's tree size written out where it named none."""
        if self.kind != "speculative" or self.nodes is not None:
            return self
        return replace(self, nodes=nodes)


def _count(text: str, spec: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise UsageError(
            f"--method {spec}: expected a whole number of {what} after '@', got '{text}'"
        )
    return int(text)


def parse_spec(text: str) -> MethodSpec:
    """Read one SPEC; UsageError names the part that does not fit."""
    spec = text.strip()
    if spec == "ar":
        return MethodSpec("ar")
    if spec in PEERS:
        return MethodSpec("peer", peer=spec)
    left, plus, right = spec.rpartition("+")
    if not plus:
        raise UsageError(f"--method {spec}: expected {_HELP}")
    tree, at, nodes_text = right.partition("@")
    TREES.check(tree, f"--method {spec}")
    nodes: int | None = None
    if at:
        nodes = ADAPTS if nodes_text == "auto" else _count(nodes_text, spec, "tree nodes")
    # A drafter may be a path or a hub name; the shortlist is what follows the last colon.
    drafter_text, colon, head = left.rpartition(":")
    if colon and not drafter_text:
        raise UsageError(f"--method {spec}: expected a drafter's name before ':', got nothing")
    shortlist, at, size_text = head.partition("@")
    size = _count(size_text, spec, "shortlist tokens") if at else None
    if shortlist not in SHORTLISTS and not _looks_like_path(shortlist):
        raise UsageError(
            f"--method {spec}: expected a shortlist of {', '.join(SHORTLISTS)} "
            f"or the path of a bundle or token map, got '{shortlist}'"
        )
    if shortlist == "full" and size is not None:
        raise UsageError(
            f"--method {spec}: expected full without a size (it is the vocabulary), got @{size}"
        )
    return MethodSpec(
        "speculative",
        drafter=drafter_text or None,
        shortlist=shortlist,
        shortlist_size=size,
        tree=tree,
        nodes=nodes,
    )


def parse_specs(texts: list[str]) -> list[MethodSpec]:
    """Read several; a method that is named twice would be paired with itself and is refused."""
    specs = [parse_spec(t) for t in texts]
    seen: set[str] = set()
    for spec in specs:
        if str(spec) in seen:
            raise UsageError(f"--method {spec}: expected each method once, got it twice")
        seen.add(str(spec))
    return specs


def _looks_like_path(text: str) -> bool:
    """A folder or file; one that does not exist is told when it is opened."""
    suffixes = (".json", ".pt", ".safetensors", ".txt")
    marked = "/" in text or "=" in text or text.startswith(".")
    return marked or text.endswith(suffixes) or Path(text).exists()
