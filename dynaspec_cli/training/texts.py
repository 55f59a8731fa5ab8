"""A corpus as token ids: long texts in pieces, held-out texts apart, a fair share of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from dynaspec_cli.training.corpus import read_corpus

PIECE_TOKENS = 1024
"""Longer texts are cut into pieces."""


@dataclass(frozen=True)
class EncodedTexts:
    """int32 ids of the texts to learn from and of those held out, each with its group's name."""

    texts: list[Tensor]
    groups: list[str]
    held: list[Tensor]
    held_groups: list[str]

    @property
    def names(self) -> list[str]:
        """Every group once; its place is its number."""
        return list(dict.fromkeys((*self.groups, *self.held_groups)))

    def numbers(self, groups: Sequence[str]) -> list[int]:
        """The numbers of groups."""
        number = {name: i for i, name in enumerate(self.names)}
        return [number[name] for name in groups]


def encode_texts(
    sources: Sequence[str],
    encode: Callable[[str], list[int]],
    bos_id: int | None,
    *,
    held_out: int,
    least_held: int = 2,
    whole: bool = False,
) -> EncodedTexts:
    """Read a corpus (see ``read_corpus``, for errors too); texts of less than two tokens are left
    out.

    ``held_out``: at most so many held-out texts, each of ``least_held`` tokens or more; what else
    its hash holds out is neither learned from. ``whole``: texts are not cut into pieces.
    """
    texts: list[Tensor] = []
    groups: list[str] = []
    held = HeldOutTexts(held_out)
    for text in read_corpus(sources):
        ids = torch.tensor(encode(text.text), dtype=torch.int32)
        if ids.numel() < 2:
            continue
        parts = [ids] if whole else list(pieces(ids, PIECE_TOKENS, bos_id))
        if not text.held_out():
            texts.extend(parts)
            groups.extend([text.group] * len(parts))
        elif ids.numel() >= least_held:
            held.add(text.group, parts[0])
    kept = held.take()
    return EncodedTexts(texts, groups, [ids for _, ids in kept], [group for group, _ in kept])


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
            yield torch.cat([front, part])
