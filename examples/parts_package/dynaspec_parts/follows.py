"""A drafter without an LM head: a table of the tokens that often follow each token.

A folder of it holds ``config.json`` with ``{"table": "follows"}`` and ``model.safetensors`` with
"next" int64 [V, k], best first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.kind import DrafterKind, HeadFacts
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Committed, DraftHeadOutput, DraftTree, Frontier, Target
from dynaspec_cli.target.tokenizer import TextTokenizer


@dataclass
class Read:
    """How many tokens of a request were read: all the state there is."""

    tokens: int


class Follows:
    """Proposes ``table[token]`` after a token, each half as probable as the one before it."""

    head = None
    taps: tuple[int, ...] = ()

    def __init__(self, name: str, folder: Path, table: Tensor) -> None:
        self.name, self.table = name, table
        self.folder: Path | None = folder

    def describe(self) -> dict[str, Any]:
        return {"drafter_kind": "follows"}

    def begin(self, prompt: Tensor, max_length: int) -> Read:
        return Read(1)

    def extend(self, state: Read, committed: Committed) -> DraftHeadOutput:
        state.tokens += committed.tokens.numel()
        return self._propose(committed.tokens[-1:])

    def step(self, state: Read, frontier: Frontier) -> DraftHeadOutput:
        return self._propose(frontier.tokens)

    def observe(self, state: Read, tree: DraftTree, path: Tensor) -> None:
        """A table learns nothing."""

    def rewind(self, state: Read, prompt: Tensor, max_length: int) -> int:
        state.tokens = prompt.numel()
        return state.tokens

    def _propose(self, tokens: Tensor) -> DraftHeadOutput:
        ids = self.table[tokens.cpu()]
        log_q = torch.arange(1, ids.shape[1] + 1) * -math.log(2.0)
        return DraftHeadOutput(log_q.expand(ids.shape).contiguous(), ids, 0)


def recognise(files: DrafterFiles) -> bool:
    return files.config.get("table") == "follows"


def load(files: DrafterFiles, target: Target, tokenizer: TextTokenizer | None) -> Follows:
    table = files.tensors()["next"]
    if table.shape[0] != target.vocab_size:
        raise DynaSpecError(
            f"drafter {files.folder}: expected a row for each of {target.vocab_size} tokens of "
            f"{target.name}, got {table.shape[0]}"
        )
    return Follows(files.name, files.folder, table)


def inspect(files: DrafterFiles) -> HeadFacts:
    return HeadFacts(files.shapes()["next"][0], rows=None)


KIND = DrafterKind(recognise, load, inspect)
"""What the entry point names."""
