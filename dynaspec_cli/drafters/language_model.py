"""A small language model as drafter (SpecInfer, arXiv 2305.09781; Sequoia, 2402.12374; DySpec,
2410.11744): any causal language model of the target's tokenizer, on the layers, caches and tree
masks that targets have.

Its cache holds the text as the target's does. Below the last settled token lie the rows of the tree
under construction; those that the target accepted stay, since a row has the same values in a tree
and in plain text. What the drafter itself never ran (the last accepted node, the bonus token) is
run with the next round's first pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.head import own_head
from dynaspec_cli.drafters.kind import DrafterKind, HeadFacts
from dynaspec_cli.drafters.same_tokenizer import check_same_tokenizer
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.pages import give_back
from dynaspec_cli.protocols import Committed, DraftRows, DraftTree, Frontier, Target, TargetOutput
from dynaspec_cli.target.head import LMHead
from dynaspec_cli.target.load import load_source
from dynaspec_cli.target.resolve import ModelSource, check_folder
from dynaspec_cli.target.tokenizer import TextTokenizer

KIND = "language-model"

PARTS_OF_HEADS = ("fc", "midlayer", "d2t", "t2d")
"""Tensors that read a target's hidden states or map to its vocabulary: a head that lacks something
is no language model."""

CHAIN_ROWS = 16
"""Settled tokens that are run together with the next tree; more are read as a prompt is."""

MARGIN = 64
"""Tokens from the end of its context where a drafter begins anew with the latter half of the
text."""


class LanguageModel(Target, Protocol):
    """A target whose LM head can be had as it is."""

    @property
    def head(self) -> LMHead: ...


@dataclass
class LanguageModelState:
    """``cache``: the model's state, begun for ``room`` tokens. ``text``: the settled tokens that it
    is to hold, of which the last ``waiting`` have no committed row yet. ``tokens`` and ``parents``:
    the rows behind the committed ones, as in ``DraftTree``: a chain of settled tokens up to row
    ``root``, then the tree."""

    cache: Any
    room: int
    text: list[int]
    waiting: int
    tokens: list[int]
    parents: list[int]
    root: int = -1


class LanguageModelDrafter:
    """``model``: the language model in a target's form. Text that exceeds its context is cut at the
    front, and a token that it has no row for is read as its last one: what it drafts is then worse,
    never wrong. A cap on logits is left out of the drafts' probabilities, whose order it keeps."""

    name = "memory"
    folder: Path | None = None
    taps: tuple[int, ...] = ()

    def __init__(self, model: LanguageModel, target: Target) -> None:
        if model.head.bias is not None:
            raise DynaSpecError(
                f"--drafter {model.name}: its LM head has a bias, which shortlists do not score; "
                "choose another model"
            )
        self.model = model
        self.head = own_head(model.head_weight(), None, target.vocab_size)

    def describe(self) -> dict[str, Any]:
        return {
            "drafter_kind": KIND,
            "drafter_layers": self.model.num_layers,
            "drafter_hidden_size": self.model.hidden_size,
            "drafter_kernels": self.model.kernels,
        }

    def begin(self, prompt: Tensor, max_length: int) -> LanguageModelState:
        room = min(max_length, self.model.max_context)
        return LanguageModelState(self.model.begin(room), room, prompt[:1].tolist(), 1, [], [])

    def extend(self, state: LanguageModelState, committed: Committed) -> DraftRows:
        settled = committed.tokens.tolist()
        state.waiting = len(settled) + (0 if state.tokens else 1) - self._commit(state, settled)
        state.text += settled
        most = self.model.max_context
        if len(state.text) > most - min(MARGIN, most // 4):
            state.text = state.text[-(most // 2) :]
            state.cache, state.waiting = self.model.begin(state.room), len(state.text)
        if state.waiting > CHAIN_ROWS:
            self.model.prefill(state.cache, self._ids(state.text[-state.waiting : -1]))
            state.waiting = 1
        state.tokens = state.text[-state.waiting :]
        state.parents = list(range(-1, state.waiting - 1))
        state.root = state.waiting - 1
        return self._run(state, 0, 1)

    def step(self, state: LanguageModelState, frontier: Frontier) -> DraftRows:
        start, below = len(state.tokens), state.root + 1
        state.tokens += frontier.tokens.tolist()
        state.parents += [
            state.root if parent < 0 else below + parent for parent in frontier.parents.tolist()
        ]
        return self._run(state, start, frontier.tokens.numel())

    def observe(self, state: LanguageModelState, tree: DraftTree, path: Tensor) -> None:
        """Nothing: what was accepted comes with the next ``extend``."""

    def rewind(self, state: LanguageModelState, prompt: Tensor, max_length: int) -> int:
        room, wanted = min(max_length, self.model.max_context), prompt.tolist()
        committed = state.text[: len(state.text) - state.waiting]
        count = next(
            (i for i, (a, b) in enumerate(zip(committed, wanted, strict=False)) if a != b),
            min(len(committed), len(wanted)),
        )
        if not count:
            return 0
        self.model.rewind(state.cache, count - 1, room)
        state.room, state.text, state.waiting = room, wanted[:count], 1
        state.tokens, state.parents, state.root = [], [], -1
        return count

    def _commit(self, state: LanguageModelState, settled: list[int]) -> int:
        """Keep the chain's rows and those of accepted nodes that a step has run; the number of the
        latter."""
        rows, at = list(range(state.root + 1)), state.root
        for token in settled[:-1]:
            below = range(at + 1, len(state.tokens))
            found = (r for r in below if state.parents[r] == at and state.tokens[r] == token)
            at = next(found, -1)
            if at < 0:
                break
            rows.append(at)
        if rows:
            self.model.commit(state.cache, torch.tensor(rows))
        return len(rows) - (state.root + 1)

    def _run(self, state: LanguageModelState, start: int, count: int) -> DraftRows:
        """One pass over the rows from ``start`` on; what the head reads of the last ``count``."""
        tree = DraftTree(self._ids(state.tokens), torch.tensor(state.parents))
        output: TargetOutput = self.model.verify(state.cache, tree, start)
        hidden = self.model.norm(output.features[-count:])
        factor = self.model.head.multiplier
        return DraftRows(hidden if factor == 1.0 else hidden * factor)

    def _ids(self, tokens: list[int]) -> Tensor:
        return torch.tensor(tokens).clamp(max=self.model.vocab_size - 1)


def load_language_model(
    source: ModelSource, name: str, target: Target, tokenizer: TextTokenizer | None
) -> LanguageModelDrafter:
    """The model of ``source`` as ``target``'s drafter on its device: a GGUF file on its own blocks
    where these are multiplied, other models in the target's dtype."""
    if tokenizer is None:
        raise DynaSpecError(
            f"--drafter {name}: a language model is compared with the target by their tokenizers; "
            "load it with the target's"
        )
    model, own_tokenizer = load_source(source, "auto", target.dtype, target.device)
    check_same_tokenizer(own_tokenizer, tokenizer, name, target.name)
    del own_tokenizer
    give_back()
    drafter = LanguageModelDrafter(model, target)
    drafter.name = name
    drafter.folder = source.gguf if isinstance(source.gguf, Path) else source.folder
    return drafter


def load_language_model_folder(
    files: DrafterFiles, target: Target, tokenizer: TextTokenizer | None = None
) -> LanguageModelDrafter:
    """The language model in a folder."""
    check_folder(files.folder)
    source = ModelSource(files.name, folder=files.folder)
    return load_language_model(source, files.name, target, tokenizer)


def _inspect(files: DrafterFiles) -> HeadFacts:
    rows = files.config.get("vocab_size")
    if not isinstance(rows, int):
        raise DynaSpecError(
            f"drafter {files.folder}: config.json of a language model lacks vocab_size"
        )
    return HeadFacts(rows, rows)


def _recognise(files: DrafterFiles) -> bool:
    parts = {part for name in files.shapes() for part in name.split(".")}
    return "model_type" in files.config and parts.isdisjoint(PARTS_OF_HEADS)


FOLDER_KIND = DrafterKind(_recognise, load_language_model_folder, _inspect)
