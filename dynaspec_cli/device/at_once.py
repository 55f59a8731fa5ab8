"""Drafting a whole round at once, as the engine asks for it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from dynaspec_cli.protocols import Committed, DraftTree, TreePolicy


class Drafted(NamedTuple):
    """A round's tree, and for each of its draft steps the number of tokens that were scored and
    which (a selection of the shortlist)."""

    tree: DraftTree
    sizes: list[int]
    selections: list[Any]


class WholeRounds(Protocol):
    """Drafts a request's rounds at once, on the device."""

    def grow(self, policy: TreePolicy, committed: Committed, temperature: float) -> Drafted | None:
        """The round that drafter, shortlist and policy would draft step by step, their states
        left as they would leave them; None where they have to."""
        ...


class DraftsAtOnce(Protocol):
    """What serves every request (device/drafting.py)."""

    def begin(self, drafter_state: Any, shortlist_state: Any) -> WholeRounds: ...
