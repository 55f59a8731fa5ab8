"""Vectors that the reference implementations gave for small random heads (tests/drafters/golden).

A case is a head's folder with ``expected.safetensors`` in it. Three are kept here, with the few
embedding rows that they need instead of a target. A directory with all of them and their targets is
used where DYNASPEC_GOLDEN names one, or it lies beside the checkout.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.published_drafter import PublishedDrafter
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.protocols import Frontier
from dynaspec_cli.target.load import load_target
from dynaspec_cli.weights.weight import Weight, dense

KEPT = Path(__file__).parent / "golden"
ATOL = 2e-4
CPU = torch.device("cpu")


def all_golden() -> Path | None:
    """The directory of all cases and targets, where there is one."""
    named = os.environ.get("DYNASPEC_GOLDEN")
    beside = Path(__file__).resolve().parents[3] / "shared" / "golden"
    if named:
        return Path(named)
    return beside if beside.is_dir() else None


def case_names(root: Path | None) -> list[str]:
    if root is None:
        return []
    return sorted(path.parent.name for path in root.glob("*/expected.json"))


class TableTarget:
    """The part of a target that a head reads: sizes, embedding rows, a head (zeros where the case
    keeps none)."""

    name, num_layers, dtype, device = "table", 8, torch.float32, CPU

    def __init__(self, ids: Tensor, rows: Tensor, vocab_size: int) -> None:
        self.vocab_size, self.hidden_size = vocab_size, rows.shape[1]
        self.table = torch.full((vocab_size, rows.shape[1]), torch.nan)
        self.table[ids] = rows
        self.head = torch.zeros(vocab_size, rows.shape[1])

    def embedding_rows(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def head_weight(self) -> Weight:
        return dense(self.head)


class Case:
    """A head with its expected values. ``target``: a ``TableTarget`` for the kept cases."""

    def __init__(self, folder: Path, target: Any = None) -> None:
        self.folder, self.name = folder, folder.name
        self.expected = load_file(folder / "expected.safetensors")
        self.info = json.loads((folder / "expected.json").read_text())
        if target is None and (folder.parent / "targets").is_dir():
            where = folder.parent / "targets" / self.info["target"]
            target = load_target(where, self.info["target"], torch.float32, CPU)
        if target is None:
            rows = self.expected["embedding.rows"]
            target = TableTarget(self.expected["embedding.ids"], rows, self.info["vocab_size"])
        self.target = target

    def drafter(self, **options: str) -> Any:
        return load_folder(DrafterFiles(self.folder, self.name, options), self.target)

    @property
    def prompt(self) -> Tensor:
        return self.expected["prompt_ids"]

    @property
    def following(self) -> Tensor:
        """The token after each prompt token."""
        return torch.cat([self.prompt[1:], torch.tensor([self.info["first_token"]])])

    def states(self, drafter: PublishedDrafter) -> Tensor:
        """What the prompt's pairs carry, from the vectors' own target states."""
        if not drafter.taps:
            return self.expected["target.last_hidden"]
        taps = self.expected["target.taps"]
        output: Any = SimpleNamespace(taps=taps)
        return drafter.states(output, torch.arange(taps.shape[0]))

    def prefill(self, drafter: PublishedDrafter) -> tuple[Any, Tensor]:
        """(request state, what the head reads of every prompt row)."""
        state = drafter.begin(self.prompt, 64)
        return state, drafter.read(state, self.states(drafter), self.following)


def target_ids(drafter: PublishedDrafter, hidden: Tensor) -> Tensor:
    """The target's token of the head's best row."""
    best = (hidden @ drafter.head.weight.float().t()).argmax(-1)
    return best if drafter.head.vocab is None else drafter.head.vocab.ids[best]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


def close_logits(drafter: PublishedDrafter, hidden: Tensor, theirs: Tensor) -> None:
    close(hidden @ drafter.head.weight.float().t(), theirs)


def frontier(tokens: list[int], parents: list[int], source: list[int]) -> Frontier:
    return Frontier(torch.tensor(tokens), torch.tensor(parents), torch.tensor(source))


def check_prefill(case: Case, drafter: PublishedDrafter) -> None:
    _, hidden = case.prefill(drafter)
    if "prefill.logits" in case.expected:
        close_logits(drafter, hidden, case.expected["prefill.logits"])
    if "chain.prefill_hidden_out" in case.expected and drafter.config.method == "eagle-1":
        close(hidden, case.expected["chain.prefill_hidden_out"])


def check_chain(case: Case, drafter: PublishedDrafter) -> None:
    """Entry 0 is the last prompt row, the others are draft steps, each below the one before."""
    state, hidden = case.prefill(drafter)
    hidden, e = hidden[-1:], case.expected
    for j in range(e["chain.input_ids"].numel()):
        if j:
            assert state.length + j - 1 == case.prompt.numel() - 1 + j
            token = int(e["chain.input_ids"][j])
            hidden = drafter.step(state, frontier([token], [j - 2], [0])).hidden
        if "chain.logits" in e:
            close_logits(drafter, hidden, e["chain.logits"][j : j + 1])
            assert int(target_ids(drafter, hidden)) == int(e["chain.draft_tokens"][j])
        own = e.get("chain.hidden_out", e.get("chain.hidden_prenorm"))
        if own is not None and not drafter.config.norm_output:
            close(state.fed, own[j : j + 1])


def check_beams(case: Case, drafter: PublishedDrafter, state: Any = None) -> None:
    """EAGLE's three beams of four nodes, below a ``state`` that has read the prompt."""
    state = case.prefill(drafter)[0] if state is None else state
    e, root = case.expected, case.expected["chain.hidden_out"][:1]
    close(state.fed, root)
    seen = root.expand(4, -1)
    for step in (1, 2, 3):
        before = f"tree.step{step}."
        mask = e[before + "mask"]
        parents, source = [], []
        for i in range(4):
            above = mask[i, : 4 * (step - 1)].nonzero().flatten().tolist()
            parents.append(above[-1] if above else -1)
            source.append(above[-1] - 4 * (step - 2) if above else 0)
        if step > 1:
            seen = state.fed[source]
        close(seen, e[before + "hidden_in"])
        given = frontier(e[before + "input_ids"].tolist(), parents, source)
        hidden = drafter.step(state, given).hidden
        close(state.fed, e[before + "hidden_out"])
        if before + "logits" in e:
            close_logits(drafter, hidden, e[before + "logits"])


def check_fixed_tree(case: Case, drafter: PublishedDrafter) -> None:
    """The speculators cases' tree of ten nodes: node 0 is the root, level by level."""
    state, hidden = case.prefill(drafter)
    e = case.expected
    depth, parents = e["tree.depth"], e["tree.parents"].tolist()
    close_logits(drafter, hidden[-1:], e["tree.logits"][:1])
    for level in range(1, int(depth.max()) + 1):
        rows = (depth == level).nonzero().flatten().tolist()
        above = (depth == level - 1).nonzero().flatten().tolist()
        given = frontier(
            e["tree.tokens"][rows].tolist(),
            [parents[row] - 1 for row in rows],
            [above.index(parents[row]) for row in rows],
        )
        close_logits(drafter, drafter.step(state, given).hidden, e["tree.logits"][rows])
