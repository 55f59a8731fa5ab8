"""Held-out texts, a fair share of each group, and long texts in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from torch import Tensor, cat


class HeldOutTexts:
    """The first texts of every group that were added; ``take`` mixes them, so that a corpus of one
    file after another is not judged by its first file."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._texts: dict[str, list[Tensor]] = {}

    def add(self, group: str, ids: Tensor) -> None:
        """ids int [T] of a text of ``group``."""
        kept = self._texts.setdefault(group, [])
        if len(kept) < self.limit:
            kept.append(ids)

    def take(self) -> list[tuple[str, Tensor]]:
        """At most ``limit`` texts, one of each group in turn."""
        turns = zip_longest(*([(g, ids) for ids in kept] for g, kept in self._texts.items()))
        return [text for turn in turns for text in turn if text is not None][: self.limit]


def pieces(ids: Tensor, length: int, bos_id: int | None) -> Iterator[Tensor]:
    """ids int [T] of a text cut into pieces of at most ``length`` tokens, each behind the BOS token
    where the text begins with one; a rest of less than two tokens is left out."""
    has_bos = bos_id is not None and ids.numel() > 0 and int(ids[0]) == bos_id
    front, body = (ids[:1], ids[1:]) if has_bos else (ids[:0], ids)
    for part in body.split(length - front.numel()):
        if part.numel() + front.numel() >= 2:
            yield cat([front, part])
