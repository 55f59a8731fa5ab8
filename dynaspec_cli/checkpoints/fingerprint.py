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
    rows, width = weight.shape
    count = min(rows, SAMPLED_ROWS)
    picked = torch.linspace(0, rows - 1, count, dtype=torch.float64).round().long().unique()
    sample = weight.detach()[picked.to(weight.device)].to(torch.bfloat16).cpu().contiguous()
    digest = hashlib.sha256(f"dynaspec-head-1:{rows}x{width}:".encode())
    digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
