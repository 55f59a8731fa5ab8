"""Published heads in a conversation: a rewound state goes on as one that read the prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_heads import head_shapes, random_tensors
from test_published_heads import VOCAB, WIDTH, eagle1, make_target, write

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.ops.extension import compiled
from dynaspec_cli.protocols import Committed, Frontier

SHARED = [5, 17, 40, 41, 3, 88]
FIRST, SECOND = [*SHARED, 12, 60, 7, 9], [*SHARED, 13, 2, 2, 61, 4]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_target(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize("deep", [False, True], ids=["eagle1", "eagle3"])
def test_a_rewound_state_reads_on_like_a_fresh_one(target: Any, tmp_path: Any, deep: bool) -> None:
    shapes = head_shapes(deep, WIDTH, WIDTH, VOCAB, 1)
    config = eagle1(**({"draft_vocab_size": VOCAB} if deep else {}))
    if deep:
        shapes |= {"embed_tokens.weight": (VOCAB, WIDTH)}
    files = DrafterFiles(write(tmp_path / "d", config, random_tensors(shapes)), "d")
    drafter = load_folder(files, target)
    assert bool(drafter.taps) == deep
    frontier = Frontier(torch.tensor([7, 9]), torch.tensor([-1, -1]), torch.tensor([0, 0]))

    def read(state: Any, prompt: list[int], known: int) -> Any:
        """What the drafter makes of the tokens behind the ``known`` first ones."""
        ids = torch.tensor(prompt)
        output = target.prefill(target.begin(64, drafter.taps), ids)
        pieces = torch.arange(known), torch.arange(known, len(prompt))
        kept = target.recall([output.keep(rows) for rows in pieces])
        rows = torch.arange(known - 1, len(prompt) - 1)
        drafter.extend(state, Committed(kept, rows, ids[known:]))
        return drafter.step(state, frontier).hidden

    fresh = drafter.begin(torch.tensor(SECOND), 16)
    expected = read(fresh, SECOND, 1)
    state = drafter.begin(torch.tensor(FIRST), 16)
    read(state, FIRST, 1)
    assert drafter.rewind(state, torch.tensor(SHARED), 64) == len(SHARED)
    found = read(state, SECOND, len(SHARED))
    assert state.length == fresh.length == len(SECOND) - 1
    # Without the extension a row's sums depend on the rows beside it: exact up to rounding only.
    exact = {"rtol": 0, "atol": 0 if compiled(found) else 1e-5}
    torch.testing.assert_close(found, expected, **exact)
    for ours, theirs in zip(state.k + state.v, fresh.k + fresh.v, strict=True):
        torch.testing.assert_close(ours[: state.length], theirs[: state.length], **exact)
    # It has not read more than it has read.
    assert drafter.rewind(state, torch.tensor([*SECOND, 1, 2, 3]), 64) == len(SECOND)
