"""What train_lm_drafter.py learns from: a corpus, and texts that the target wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynaspec_cli.target.tokenizer import TextTokenizer
from dynaspec_cli.training.corpus import read_corpus

HELD_OUT = 16
"""One written answer in so many is held out."""


class Corpus:
    """The texts end to end, in an order of their own: ``stream`` int32 [T]. Dialogues ("User: ...",
    "Assistant: ...") take the form of the target's chat template, where it has one."""

    def __init__(self, files: Sequence[str], tokenizer: TextTokenizer, kept: Path) -> None:
        if kept.is_file():
            self.stream = load_file(kept)["stream"]
            return
        frame = _chat_frame(tokenizer)
        ends = list(tokenizer.eos_ids[:1])
        parts = []
        for text in read_corpus(files):
            if text.held_out():
                continue
            form = _as_chat(text.text, frame)
            ids = tokenizer.encode(text.text) if form is None else tokenizer.encode(form, False)
            parts.append(torch.tensor(ids + ends, dtype=torch.int32))
        order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(0))
        self.stream = torch.cat([parts[i] for i in order])
        replace_file(kept, lambda path: save_file({"stream": self.stream}, path))

    def batch(self, rows: int, length: int, draw: torch.Generator) -> Tensor:
        """int64 [rows, length + 1]: windows from anywhere."""
        begins = torch.randint(self.stream.numel() - length, (rows,), generator=draw)
        return torch.stack([self.stream[b : b + length + 1] for b in begins.tolist()]).long()


def _chat_frame(tokenizer: TextTokenizer) -> tuple[str, str, str] | None:
    """What stands before a question, between it and its answer, and behind that."""
    if not tokenizer.chat_template:
        return None
    ids = tokenizer.chat([{"role": "user", "content": "@@@"}])
    before, between = tokenizer.decode(ids, skip_special=False).split("@@@")
    return before, between, tokenizer.decode(tokenizer.eos_ids[:1], skip_special=False)


def _as_chat(text: str, frame: tuple[str, str, str] | None) -> str | None:
    """The first exchange of a dialogue in the template's form; None for other texts."""
    if frame is None or not text.startswith("User: ") or "\n\nAssistant: " not in text:
        return None
    question, answer = text.removeprefix("User: ").split("\n\nAssistant: ", 1)
    return frame[0] + question + frame[1] + answer.split("\n\nUser: ")[0] + frame[2]


class Answers:
    """Texts that the target wrote, shard by shard, linked from the folder of a run that may delete
    them: tokens [N, T], features [N, T, d], length of the prompt."""

    def __init__(self, source: Path | None, kept: Path) -> None:
        self.source, self.kept = source, kept
        self.files: list[Path] = []

    def refresh(self) -> None:
        """Take over what the other run wrote since."""
        if self.source is None:
            return
        self.kept.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.source.glob("shard-*.safetensors")):
            copy = self.kept / path.name
            if not copy.exists():
                try:
                    os.link(path, copy)
                except OSError:
                    shutil.copy(path, copy)
        self.files = sorted(self.kept.glob("shard-*.safetensors"))

    def rows(self, held_out: bool) -> list[tuple[Path, int]]:
        found = []
        for path in self.files:
            with safe_open(path, "pt") as file:
                count = file.get_slice("tokens").get_shape()[0]
            found += [(path, row) for row in range(count) if (row % HELD_OUT == 0) == held_out]
        return found

    def read(self, path: Path, rows: Sequence[int]) -> tuple[Tensor, Tensor, int]:
        """(tokens int64 [n, T], features [n, T, d], prompt) of rows of one shard."""
        with safe_open(path, "pt") as file:
            tokens = file.get_tensor("tokens")[list(rows)].long()
            part = file.get_slice("features")
            features = torch.cat([part[row : row + 1] for row in rows])
            return tokens, features, int(file.metadata()["prompt"])


def replace_file(path: Path, write: Any) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)
