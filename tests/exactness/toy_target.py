"""``protocols.Target`` on a toy model, so that the decode loop itself can be enumerated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from exact_toys import Context, Law, Script, ToyModel, node_contexts, outcomes
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.protocols import Committed, DraftHeadOutput, DraftTree, Frontier, KeptRows


class ToyOutput:
    """Logits of one row a context. A row's feature is the number of its context."""

    numbers: ClassVar[dict[Context, int]] = {}

    cheap_rows: int | None = None
    rows_ranked: Tensor | None = None
    taps: Tensor | None = None

    def __init__(self, model: ToyModel, contexts: list[Context]) -> None:
        self.table = torch.stack([model.target_logits(context) for context in contexts])
        numbers = [self.numbers.setdefault(context, len(self.numbers)) for context in contexts]
        self.features = torch.tensor(numbers, dtype=torch.float64)[:, None]

    def logits(self, rows: Tensor | None = None) -> Tensor:
        return self.table if rows is None else self.table[rows]

    def logits_at(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        return self.table[rows, token_ids]

    def argmax(self, rows: Tensor | None = None) -> Tensor:
        return self.logits(rows).argmax(-1)

    def leaders(self, k: int, rows: Tensor | None = None) -> Tensor:
        return self.logits(rows).topk(k).indices

    def keep(self, rows: Tensor) -> KeptRows:
        return KeptRows(self.features[rows], None, {})


@dataclass
class ToyState:
    """The committed tokens, and the contexts of the last verified tree."""

    context: Context = ()
    rows: list[Context] = field(default_factory=list)


class ToyTarget:
    """Rows are contexts: nothing is cached."""

    name, kernels, bit_exact = "toy", "toy", True
    hidden_size, num_layers, max_context = 1, 1, 1 << 20
    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, model: ToyModel) -> None:
        self.model = model
        self.vocab_size = model.vocab

    def begin(self, max_length: int, taps: tuple[int, ...] = ()) -> ToyState:
        return ToyState()

    def prefill(self, state: ToyState, token_ids: Tensor) -> ToyOutput:
        tokens, start = tuple(token_ids.tolist()), state.context
        state.context = start + tokens
        return ToyOutput(self.model, [start + tokens[: i + 1] for i in range(len(tokens))])

    def verify(self, state: ToyState, tree: DraftTree, start: int = 0) -> ToyOutput:
        state.rows = node_contexts(tree, (*state.context, int(tree.tokens[0])))
        return ToyOutput(self.model, state.rows[start:])

    def commit(self, state: ToyState, rows: Tensor) -> None:
        state.context = state.rows[int(rows[-1])]

    def recall(self, kept: Sequence[KeptRows]) -> ToyOutput:
        contexts = list(ToyOutput.numbers)
        numbers = KeptRows.joined(kept).features[:, 0].long().tolist()
        return ToyOutput(self.model, [contexts[number] for number in numbers])


def decoded_law(
    model: ToyModel, prompt: Context, make: Any, sampling: SamplingConfig, length: int
) -> tuple[Law, float]:
    """The law of the first ``length`` tokens that the engine's own loop emits, over every random
    outcome, and the mean number of accepted draft tokens. ``make(target, script)`` gives the
    ``Speculation``."""
    target: Any = ToyTarget(model)

    def experiment(script: Script) -> tuple[Context, int]:
        speculation: Speculation = make(target, script)
        tokens: Context = ()
        accepted = 0
        source: Any = script
        for emission in decode(target, torch.tensor(prompt), 1000, sampling, source, speculation):
            tokens += tuple(emission.token_ids)
            accepted += emission.step.accepted if emission.step else 0
            if len(tokens) >= length:
                break
        return tokens[:length], accepted

    law: Law = {}
    drafts = 0.0
    for (tokens, accepted), probability in outcomes(experiment):
        law[tokens] = law.get(tokens, 0.0) + probability
        drafts += probability * accepted
    return law, drafts


class ToyDrafter:
    """The toy model's drafter, which scores its own tokens."""

    name, folder, head, taps = "toy", None, None, ()

    def __init__(self, model: ToyModel, width: int) -> None:
        self.model, self.width = model, width

    def describe(self) -> dict[str, Any]:
        return {"drafter_kind": "toy"}

    def begin(self, prompt: Tensor, max_length: int) -> dict[str, Any]:
        return {"context": (int(prompt[0]),)}

    def extend(self, state: dict[str, Any], committed: Committed) -> DraftHeadOutput:
        state["context"] += tuple(committed.tokens.tolist())
        state["last"] = [state["context"]]
        return self.model.candidates(state["last"], self.width)

    def step(self, state: dict[str, Any], frontier: Frontier) -> DraftHeadOutput:
        pairs = zip(frontier.source.tolist(), frontier.tokens.tolist(), strict=True)
        state["last"] = [(*state["last"][source], token) for source, token in pairs]
        return self.model.candidates(state["last"], self.width)

    def observe(self, state: dict[str, Any], tree: DraftTree, path: Tensor) -> None:
        pass
