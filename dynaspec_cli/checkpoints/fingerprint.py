"""What binds an artifact to its target: a hash of the LM head."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

SAMPLED_ROWS = 4096


class Head(Protocol):
    """What tells heads apart; every target has it. ``head_hash`` None: not known, so that any head
    of these sizes may be meant."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    def head_hash(self) -> str | None: ...


def head_hash(weight: Tensor) -> str:
    """Hash (32 hexadecimal digits) of an LM head [V, d] in token-id order, of any floating dtype.

    SHA-256 over the shape and ``SAMPLED_ROWS`` rows spread evenly over the vocabulary (first and
    last included), rounded to bf16. A head read in float32 and the same head read in bf16 hash
    alike; float16 does so where its range holds the weights (fp16 keeps more bits than bf16, so the
    second rounding can differ in rare halves: hash the stored dtype).
    """
    sample = weight.detach()[sampled_rows(weight.shape[0]).to(weight.device)]
    return head_hash_of_rows((weight.shape[0], weight.shape[1]), sample)


def sampled_rows(rows: int) -> Tensor:
    """The rows, int64 and ascending, that the hash of a head of ``rows`` rows reads."""
    count = min(rows, SAMPLED_ROWS)
    return torch.linspace(0, rows - 1, count, dtype=torch.float64).round().long().unique()


def head_hash_of_rows(shape: tuple[int, int], sample: Tensor) -> str:
    """``head_hash`` of a head of ``shape`` from its ``sampled_rows`` alone."""
    rows, width = shape
    stored = sample.to(torch.bfloat16).cpu().contiguous()
    digest = hashlib.sha256(f"dynaspec-head-1:{rows}x{width}:".encode())
    digest.update(stored.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
