"""A drafter that was not fed for a while drafts what one drafts that was fed all along; one that is
given a window drafts what one drafts that begins there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.engine import reading
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.draft import root_only
from dynaspec_cli.engine.prefix_cache import PrefixCache
from dynaspec_cli.engine.reading import Reading
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.protocols import Committed
from dynaspec_cli.target.load import load
from dynaspec_cli.tuning.costs import CostTable

pytestmark = pytest.mark.skipif(
    EXTENSION.module is None, reason="without the extension a row is exact up to rounding only"
)

PROMPT = torch.arange(5, 25)
ROOM = 200


@pytest.fixture(scope="module", params=["eagle", "language-model"])
def parts(request: Any, tiny_model_dir: Path, tiny_drafter_dir: Path) -> Any:
    target, tokenizer = load(str(tiny_model_dir), "float32", "cpu", 1)
    name = tiny_drafter_dir if request.param == "eagle" else tiny_model_dir
    return target, load_drafter(str(name), target, tokenizer)


class Text:
    """A request's text as the target reads it, token by token."""

    def __init__(self, target: Any) -> None:
        self.target, self.cache = target, PrefixCache(target)
        for _ in self.cache.read(PROMPT, ROOM, ()):
            pass
        last = torch.tensor([PROMPT.numel() - 1])
        self.committed = Committed(self.cache.output, last, torch.tensor([30]))

    def grow(self, token: int) -> None:
        """A plain round: its root is read, and ``token`` is the next one's."""
        tree = root_only(int(self.committed.tokens[-1]))
        output = self.target.verify(self.cache.state, tree)
        path = torch.tensor([0])
        self.target.commit(self.cache.state, path)
        self.cache.append(tree.tokens, output, path)
        self.committed = Committed(output, path, torch.tensor([token]))


def drafts(drafter: Any, read: Reading, text: Text) -> tuple[Tensor, bool]:
    """What the head would read for the children of the root, and was the state begun anew?"""
    committed, anew = read.catch_up(text.committed)
    return drafter.extend(read.state, committed).hidden, anew


def test_fed_late_is_fed_all_along(parts: Any) -> None:
    target, drafter = parts
    texts = [Text(target), Text(target)]
    fed, late = (Reading(drafter, text.cache, PROMPT, ROOM, 64) for text in texts)
    drafts(drafter, fed, texts[0])
    for token in range(40, 70):
        for text in texts:
            text.grow(token)
        assert late.behind == texts[1].committed.tokens.numel() + token - 40 + 1
        along, anew = drafts(drafter, fed, texts[0])
        assert not anew
    once, anew = drafts(drafter, late, texts[1])
    assert not anew
    assert torch.equal(along, once)
    assert texts[1].cache.drafter[0] is late.state  # it has read all, and serves the next request


def test_a_long_absence_is_read_from_a_window(parts: Any) -> None:
    target, drafter = parts
    text = Text(target)
    read = Reading(drafter, text.cache, PROMPT, ROOM, 16)
    assert read.start == PROMPT.numel() - 1 - 16
    assert read.wider == PROMPT.numel()
    drafts(drafter, read, text)
    for token in range(40, 70):
        text.grow(token)
    assert read.behind == 16
    found, anew = drafts(drafter, read, text)
    assert anew
    assert text.cache.drafter[0] is None  # a gap is of no use to a request that begins anew
    # By hand: a state that begins 16 tokens before the last one.
    tokens = torch.tensor([*text.cache.tokens, 69])
    state = drafter.begin(tokens[-17:-1], ROOM)
    rows = torch.arange(tokens.numel() - 17, tokens.numel() - 1)
    byhand = Committed(text.cache.output, rows, tokens[-16:])
    assert torch.equal(found, drafter.extend(state, byhand).hidden)


def test_a_widened_window_is_the_whole_text(parts: Any) -> None:
    target, drafter = parts
    texts = [Text(target), Text(target)]
    whole = Reading(drafter, texts[0].cache, PROMPT, ROOM, reading.MOST_TOKENS)
    narrow = Reading(drafter, texts[1].cache, PROMPT, ROOM, 4)
    assert whole.wider == 0
    narrow.widen()
    assert narrow.wider == 0
    (one, _), (other, anew) = (
        drafts(drafter, read, text) for read, text in zip((whole, narrow), texts, strict=True)
    )
    assert anew
    assert torch.equal(one, other)
    assert texts[1].cache.drafter[0] is narrow.state


def test_turns_with_windows_are_fresh_requests(
    parts: Any, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes adapt, windows are shorter than the prompts, and one is widened now and then."""
    monkeypatch.setattr("dynaspec_cli.engine.draft.FIRST_TOKENS", 6)
    target, drafter = parts
    _, tokenizer = load(str(tiny_model_dir), "float32", "cpu", 1)
    engine = Engine(target, tokenizer, drafter)
    costs = CostTable((1, 17), (1.0, 1.2), 0.01, 0.001)
    monkeypatch.setattr("dynaspec_cli.engine.api.costs_of", lambda *_: costs)
    talk = engine.conversation()
    ids = PROMPT.tolist()
    drafted = 0
    for turn in range(4):
        settings = GenerationConfig(12 + turn)
        *_, done = talk.generate(ids, settings)
        fresh = engine.complete(ids, settings)
        for result in (done.result, fresh):  # type: ignore[union-attr]
            assert result.token_ids == fresh.token_ids
            steps = [(s.drafted, s.accepted, s.depth) for s in result.steps]
            assert steps == [(s.drafted, s.accepted, s.depth) for s in fresh.steps]
        drafted += fresh.num_draft_tokens
        ids = [*ids, *fresh.token_ids, 9, 10]
    assert drafted > 0
