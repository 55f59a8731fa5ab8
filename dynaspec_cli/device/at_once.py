"""Drafting a whole round at once, as the engine asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from dynaspec_cli.protocols import Committed, DraftTree, TreePolicy
from dynaspec_cli.unread_tree import UnreadTree


class Drafted(NamedTuple):
    """A round's tree, and for each of its draft steps the number of tokens that were scored and
    which (a selection of the shortlist)."""

    tree: DraftTree
    sizes: list[int]
    selections: list[Any]


class WholeRounds(Protocol):
    """Drafts a request's rounds at once, on the device."""

    def grow(
        self,
        policy: TreePolicy,
        committed: Committed,
        temperature: float,
        arrived: Callable[[Drafted], DraftTree],
    ) -> UnreadTree | None:
        """The round that drafter, shortlist and policy would draft step by step; None where they
        have to. Once its tree is read their states are as they would leave them, and ``arrived``
        is told."""
        ...


class DraftsAtOnce(Protocol):
    """What serves every request (device/drafting.py)."""

    def begin(self, drafter_state: Any, shortlist_state: Any) -> WholeRounds: ...
