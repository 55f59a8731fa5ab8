"""What a shortlist is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dynaspec_cli.checkpoints.bundle import HOW_TO_BUILD, ShortlistBundle
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.protocols import DrafterHead, Shortlist, Target
from dynaspec_cli.shortlist.head import DraftHead, build_head
from dynaspec_cli.shortlist.packaged import packaged_bundle
from dynaspec_cli.weights.weight import WeightFormat


@dataclass(frozen=True)
class ShortlistRequest:
    """``method``: the name asked for. ``size``: tokens, None: the method's default. ``head``: what
    the drafter's rows are scored with. ``depth``: draft steps a round. ``given``: a bundle that
    fits the target, None: the packaged one where there is one. ``token_map``: a file of token ids
    to take instead. ``form``: how the draft head is stored, None: as it is."""

    method: str
    size: int | None
    target: Target
    head: DrafterHead
    depth: int = 6
    given: ShortlistBundle | None = None
    token_map: Path | None = None
    form: WeightFormat | None = None

    def tokens(self, default: int) -> int:
        """The size asked for, checked against the vocabulary; a default is cut to it."""
        vocab_size = self.target.vocab_size
        if self.size is None:
            return min(default, vocab_size)
        if self.size > vocab_size:
            raise UsageError(
                f"--shortlist-size: expected at most the vocabulary of {self.target.name}, "
                f"{vocab_size} tokens, got {self.size}"
            )
        return self.size

    def bundle(self) -> ShortlistBundle:
        """Token orders, clusters and router. Raises ``DynaSpecError`` where there are none."""
        found = self.given if self.given is not None else packaged_bundle(self.target)
        if found is None:
            raise DynaSpecError(
                f"--shortlist {self.method}: no token counts for {self.target.name} are known; "
                f"make them with {HOW_TO_BUILD}, then give --shortlist DIR; nanospec and full need "
                "none"
            )
        return found

    def draft_head(self, order: Tensor | None = None) -> DraftHead:
        """The head's rows in the ``order`` (int64 [R] token ids) in which they are streamed."""
        return build_head(self.head.weight, order, self.form, self.head.vocab)

    def held(self, ids: Tensor) -> Tensor:
        """Of token ids int64 [m] those that have a row in the head, in their order."""
        vocab = self.head.vocab
        return ids if vocab is None else ids[vocab.mask()[ids]]


class ShortlistFactory(Protocol):
    """What a name of the registry stands for."""

    def __call__(self, request: ShortlistRequest) -> Shortlist: ...
