"""Draft id <-> target id. The one place where d2t arithmetic is done.

Two conventions are in use for a vector ``d2t`` of a drafter with its own small head: *offset*
(target = i + d2t[i]; EAGLE-3 checkpoints, SpecForge, speculators, vLLM, SGLang EAGLE-3) and
*absolute* (target = d2t[i]; llama.cpp GGUF, FR-Spec and SGLang token maps). The identity is all
zeros under the first and ``arange`` under the second, and a vector read under the wrong one gives
valid-looking nonsense, so nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError


@dataclass(frozen=True)
class VocabMap:
    """``ids`` int64 [R]: target id of draft id i; distinct, in [0, vocab_size). Checked where it is
    made."""

    ids: Tensor
    vocab_size: int
    source: str = "vocabulary map"

    def __post_init__(self) -> None:
        check_ids(self.ids, self.vocab_size, self.source)

    @classmethod
    def from_absolute(
        cls, ids: Tensor, vocab_size: int, source: str = "vocabulary map"
    ) -> VocabMap:
        """ids integer [R]: target ids themselves."""
        return cls(_integers(ids, source), vocab_size, source)

    @classmethod
    def from_offsets(cls, d2t: Tensor, vocab_size: int, source: str = "d2t") -> VocabMap:
        """d2t integer [R]: target id minus draft id."""
        offsets = _integers(d2t, source)
        return cls(offsets + torch.arange(offsets.numel()), vocab_size, source)

    @classmethod
    def from_head(
        cls, d2t: Tensor, t2d: Tensor | None, rows: int, vocab_size: int, source: str = "d2t"
    ) -> VocabMap:
        """The vocabulary of a published head of ``rows`` rows: ``d2t`` integer [rows] of offsets
        and, where the file has it, ``t2d`` [V], true for the tokens that the head has; both must
        say the same. A file whose map was never filled in (zeros) is refused."""
        if d2t.dim() != 1 or d2t.numel() != rows:
            raise DynaSpecError(
                f"{source}: expected one entry for each of the head's {rows} rows, got shape "
                f"{list(d2t.shape)}"
            )
        agreed = None
        if t2d is not None:
            if tuple(t2d.shape) != (vocab_size,):
                raise DynaSpecError(
                    f"{source}: t2d has shape {list(t2d.shape)}, expected one entry for each of "
                    f"the target's {vocab_size} tokens"
                )
            agreed = t2d.bool().cpu()
        zeros = rows < vocab_size and not bool(d2t.any())
        if zeros and (agreed is None or not bool(agreed[:rows].all())):
            raise DynaSpecError(
                f"{source}: all zeros, so it would say that the head knows the first {rows} "
                "tokens; the map was never filled in, ask the head's author for a complete file"
            )
        vocab = cls.from_offsets(d2t, vocab_size, source)
        if agreed is not None and not vocab.mask().equal(agreed):
            at = int((vocab.mask() != agreed).nonzero()[0])
            raise DynaSpecError(
                f"{source}: disagrees with t2d about token {at}; the file is damaged, or its "
                "offsets are absolute ids"
            )
        return vocab

    @property
    def is_identity(self) -> bool:
        """Is draft id i token i, for the whole vocabulary?"""
        whole = self.ids.numel() == self.vocab_size
        return whole and bool(self.ids.equal(torch.arange(self.vocab_size)))

    def mask(self) -> Tensor:
        """t2d bool [V]: true for the target ids that the draft vocabulary holds."""
        return _mask_of(self.ids, self.vocab_size)

    def rows(self) -> Tensor:
        """int64 [V]: the row of each target token, -1 where there is none."""
        rows = torch.full((self.vocab_size,), -1, dtype=torch.int64)
        rows[self.ids] = torch.arange(self.ids.numel())
        return rows


def check_ids(ids: Tensor, vocab_size: int, source: str) -> None:
    """Refuse an empty map, ids outside the vocabulary and duplicates, with one line that names the
    first fault."""
    fault = _fault(ids, vocab_size)
    if fault is not None:
        raise DynaSpecError(f"{source}: {fault}")


def _fault(ids: Tensor, vocab_size: int) -> str | None:
    if ids.ndim != 1:
        return f"expected a flat list of token ids, got a tensor of shape {list(ids.shape)}"
    if ids.numel() == 0:
        return "expected at least one token id, got none"
    outside = (ids < 0) | (ids >= vocab_size)
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        return (
            f"id {int(ids[at])} (entry {at}) is outside the target's vocabulary of {vocab_size} "
            "tokens; "
            "the file was made for another model"
        )
    distinct, counts = torch.unique(ids, return_counts=True)
    if distinct.numel() != ids.numel():
        twice = int(distinct[counts > 1][0])
        return f"token id {twice} occurs {int(counts.max())} times; expected distinct ids"
    return None


def _mask_of(ids: Tensor, vocab_size: int) -> Tensor:
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[ids] = True
    return mask


def _integers(values: Tensor, source: str) -> Tensor:
    if values.dtype.is_floating_point or values.dtype in (torch.bool, torch.complex64):
        raise DynaSpecError(f"{source}: expected integer token ids, got {values.dtype}")
    return values.detach().cpu().to(torch.int64)
