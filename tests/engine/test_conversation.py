"""A request that finds caches of an earlier one behaves as a fresh one, draft for draft."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter, LookupState
from dynaspec_cli.engine import prefix_cache
from dynaspec_cli.engine.api import Conversation, Engine
from dynaspec_cli.engine.events import DoneEvent, TokensEvent
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.extension import compiled
from dynaspec_cli.protocols import DraftTree, KeptRows
from dynaspec_cli.target.load import load, load_transformers
from dynaspec_cli.training.initialise import drafter_config, from_target


def make_engine(folder, kind: str, dtype: str, drafter: str = "eagle") -> Engine:
    """``kind``: "native" or "transformers"; with a drafter begun from the target, which is accepted
    often and rejected often, or lookup."""
    native, tokenizer = load(str(folder), dtype=dtype, device="cpu")
    reader = load_transformers(folder, "tiny", torch.float32, torch.device("cpu"))
    target = native if kind == "native" else reader
    if drafter == "lookup":
        return Engine(target, tokenizer, LookupDrafter())
    torch.manual_seed(0)
    module = from_target(drafter_config(reader, 1, 1.0), reader)
    tensors = dict(module.state_dict())
    # Every input matters: what begins from the target alone does not read the current token.
    tensors["fc"] = tensors["fc"] + 0.05 * torch.randn(tensors["fc"].shape)
    return Engine(target, tokenizer, EagleDrafter(module.config, tensors, target))


@pytest.fixture(
    scope="module",
    params=[
        ("native", "float32"),
        ("native", "bfloat16"),
        ("native", "bfloat16", "lookup"),
        ("transformers", "float32"),
    ],
    ids="-".join,
)
def engine(request, tiny_model_dir) -> Engine:
    return make_engine(tiny_model_dir, *request.param)


def config(shortlist="full", temperature=0.0, new=20, tree="dyspec", seed=0, stop=()):
    return GenerationConfig(
        max_new_tokens=new,
        stop=stop,
        sampling=SamplingConfig(temperature=temperature, seed=seed),
        tree=TreeConfig(policy=tree, size=7, depth=3, width=3),
        shortlist=ShortlistConfig(shortlist, 32 if shortlist == "nanospec" else None),
    )


def ask(conversation: Conversation, ids, settings, **more):
    *_, done = conversation.generate(ids, settings, **more)
    assert isinstance(done, DoneEvent)
    return done.result


def trace(result):
    """What a result's random numbers and drafts depended on."""
    steps = [(s.drafted, s.accepted, s.depth, s.shortlist_sizes, s.covered) for s in result.steps]
    return result.token_ids, result.text, result.finish_reason, steps


def compare_caches(ours, fresh):
    """What target and drafter hold, row for row."""
    assert ours.tokens == fresh.tokens
    assert ours.state.length == fresh.state.length == len(ours.tokens)
    exact = ours.target.bit_exact
    pairs = [(ours.output.features, fresh.output.features)]
    if exact:
        length = ours.state.length
        caches = zip(
            ours.state.keys + ours.state.values, fresh.state.keys + fresh.state.values, strict=True
        )
        pairs += [(a[:length], b[:length]) for a, b in caches]
    mine, theirs = ours.drafter[0], fresh.drafter[0]
    if isinstance(mine, LookupState):
        assert vars(mine.text) == vars(theirs.text)
        assert vars(mine.reliability) == vars(theirs.reliability)
        return
    assert (mine.length, mine.last_token) == (theirs.length, theirs.last_token)
    pairs += [
        (a[: mine.length], b[: mine.length])
        for a, b in zip(mine.k + mine.v, theirs.k + theirs.v, strict=True)
    ]
    for a, b in pairs:
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def same_as_fresh(conversation: Conversation, ids, settings, reused=None):
    """Ask both; returns the answer."""
    ours = ask(conversation, ids, settings)
    other = conversation.engine.conversation()
    fresh = ask(other, ids, settings)
    assert ours.token_ids == fresh.token_ids
    compare_caches(conversation._cache, other._cache)
    if conversation.engine.target.bit_exact:
        assert trace(ours) == trace(fresh)
    assert fresh.cached_prompt_tokens == 0
    if reused is not None:
        assert ours.cached_prompt_tokens == reused
    return ours


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shortlist", ["full", "nanospec"])
def test_turns_of_a_conversation_are_fresh_requests(engine, shortlist, temperature):
    conversation = engine.conversation()
    ids = engine.encode("The capital of France is")
    added: list[int] = []
    for turn in range(4):
        settings = config(shortlist, temperature, seed=turn, new=12 + turn)
        result = same_as_fresh(conversation, ids, settings)
        if turn:
            # All but the answer's last token, which no pass has read, and what ended the text.
            assert result.cached_prompt_tokens >= len(ids) - len(added) - 1
        added = engine.tokenizer.encode(" and that of Spain is", special=False)
        ids = [*ids, *result.token_ids, *added]


def test_edits_keep_what_comes_before_them(engine):
    conversation = engine.conversation()
    ids = engine.encode("The quick brown fox jumps over the lazy dog. " * 2)
    same_as_fresh(conversation, ids, config(), reused=0)
    for at in (len(ids) - 1, 11, 1):
        edited = [*ids[:at], 77, *ids[at + 1 : at + 6]]
        assert ids[at] != 77
        same_as_fresh(conversation, edited, config("nanospec"), reused=at)
        same_as_fresh(conversation, ids, config("nanospec"), reused=at)
    # The very same prompt again: its last token is read once more.
    same_as_fresh(conversation, ids, config("nanospec"), reused=len(ids) - 1)
    conversation.reset()
    same_as_fresh(conversation, ids, config(), reused=0)
    same_as_fresh(conversation, [77, 78], config(), reused=0)


def test_a_cut_answer_leaves_no_rows_behind_the_cut(engine):
    """Steps settle tokens beyond a stop text or the length limit; the next prompt differs there."""
    whole = engine.complete(engine.encode("def add(a, b):"), config(new=30))
    for settings in (config(new=7), config(new=30, stop=(whole.text[8:11],))):
        conversation = engine.conversation()
        ids = engine.encode("def add(a, b):")
        result = same_as_fresh(conversation, ids, settings)
        same_as_fresh(conversation, [*ids, *result.token_ids[:-1], 9, 9], config())


@pytest.mark.parametrize("kind", ["native", "transformers"])
def test_plain_and_speculative_requests_share_a_cache(tiny_model_dir, kind):
    """The drafter misses the tokens of a plain request and reads them with the next one."""
    engine = make_engine(tiny_model_dir, kind, "float32")
    conversation = engine.conversation()
    ids = engine.encode("This is")
    for turn, speculative in enumerate((False, True, False, False, True)):
        ours = ask(conversation, ids, config("nanospec"), speculative=speculative)
        fresh = engine.complete(ids, config("nanospec"), speculative=speculative)
        assert ours.token_ids == fresh.token_ids
        if engine.target.bit_exact:
            assert trace(ours) == trace(fresh)
        ids = [*ids[: len(ids) - turn], *ours.token_ids, 5 + turn]


def test_interrupted_requests_leave_a_usable_cache(engine, monkeypatch):
    ids = engine.encode("The quick brown fox jumps over the lazy dog. " * 2)
    for name in ("prefill", "verify", "commit"):
        for call in (1, 2):
            conversation = engine.conversation()
            ask(conversation, ids[:6], config(new=4))
            with monkeypatch.context() as patch:
                _interrupt(patch, engine.target, name, call)
                interrupted = ask(conversation, ids, config())
            if (name, call) != ("prefill", 2):
                assert interrupted.finish_reason == "interrupted"
            same_as_fresh(conversation, [*ids, 9, 9], config("nanospec"))
    for name in ("extend",) if engine.drafter.name == "lookup" else ("extend", "step"):
        conversation = engine.conversation()
        ask(conversation, ids[:6], config(new=4))
        with monkeypatch.context() as patch:
            _interrupt(patch, engine.drafter, name, 2)
            assert ask(conversation, ids, config()).finish_reason == "interrupted"
        same_as_fresh(conversation, [*ids, 9, 9], config("nanospec"))


def _interrupt(patch, owner, name, call):
    """Ctrl-C behind the ``call``-th call of a method."""
    method, calls = getattr(owner, name), []

    def once(*args):
        result = method(*args)
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(owner, name, once)


def test_a_long_prompt_is_read_in_pieces_and_can_be_given_up(engine, monkeypatch):
    monkeypatch.setattr(prefix_cache, "PIECE", 8)
    conversation = engine.conversation()
    ids = [5 + i % 300 for i in range(30)]
    calls = []

    def stop_at_second():
        calls.append(None)
        return len(calls) == 2

    events = list(conversation.generate(ids, config(), should_stop=stop_at_second))
    assert [type(event) for event in events] == [DoneEvent]
    result = events[0].result
    assert (result.finish_reason, result.new_tokens, result.tokens_per_second) == (
        "interrupted",
        0,
        0.0,
    )
    # Two of its four pieces were read and serve the next request.
    same_as_fresh(conversation, ids, config(), reused=16)
    assert any(isinstance(e, TokensEvent) for e in conversation.generate(ids, config()))


def test_an_error_forgets_everything(engine, monkeypatch):
    conversation = engine.conversation()
    ids = engine.encode("The capital")
    ask(conversation, ids, config())

    def broken(*_):
        raise DynaSpecError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(engine.target, "verify", broken)
        with pytest.raises(DynaSpecError, match="broken"):
            ask(conversation, ids, config())
    same_as_fresh(conversation, ids, config(), reused=0)


def test_too_long_a_prompt_leaves_the_cache_alone(engine):
    conversation = engine.conversation()
    ids = engine.encode("The capital")
    ask(conversation, ids, config())
    with pytest.raises(DynaSpecError, match="shorten the prompt"):
        ask(conversation, [5] * engine.target.max_context, config())
    same_as_fresh(conversation, ids, config())


@pytest.mark.skipif(
    not compiled(torch.empty(0)), reason="without the extension a row is exact up to rounding only"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_of_any_size_have_the_same_bits(tiny_model_dir, dtype):
    """What makes it right to reuse rows: features, keys and values do not depend on the pass."""
    target, _ = load(str(tiny_model_dir), dtype=dtype, device="cpu")
    assert target.bit_exact
    ids = torch.randint(5, 400, (200,), generator=torch.Generator().manual_seed(0))
    whole = target.begin(220)
    output = target.prefill(whole, ids)
    for sizes in ([1] * 9 + [191], [64, 3, 128, 5], [130, 70]):
        state = target.begin(220)
        kept = []
        for piece in ids.split(sizes):
            passed = target.prefill(state, piece)
            kept.append(passed.keep(torch.arange(piece.numel())))
        assert torch.equal(KeptRows.joined(kept).features, output.features)
        for ours, theirs in zip(state.keys + state.values, whole.keys + whole.values, strict=True):
            assert torch.equal(ours[:200], theirs[:200])
        again = target.recall(kept)
        rows = torch.tensor([0, 64, 199])
        assert torch.equal(again.logits(rows), output.logits(rows))
    tree = DraftTree(ids[:4], torch.tensor([-1, 0, 0, 2]))
    target.verify(whole, tree)
    target.commit(whole, torch.tensor([0, 2, 3]))
    target.rewind(whole, 150, 400 if target.max_context >= 400 else target.max_context)
    replayed = target.prefill(whole, ids[150:])
    assert torch.equal(replayed.features, output.features[150:])


def test_kept_rows_know_their_leaders(engine):
    target = engine.target
    state = target.begin(40)
    output = target.prefill(state, torch.arange(5, 25))
    some = torch.tensor([3, 7, 19])
    best = output.leaders(3, some)
    kept = output.keep(torch.arange(20))
    assert sorted(kept.leaders) == some.tolist()
    again = target.recall([kept.first(5), kept])
    assert torch.equal(again.leaders(3, some + 5), best)
    assert torch.equal(again.leaders(3, torch.tensor([3]))[0], best[0])
    fresh = target.recall([kept.first(20)]).leaders(3)
    assert torch.equal(fresh, target.recall([KeptRows(kept.features, None, {})]).leaders(3))


def test_rewinding_further_than_was_read_is_refused(engine):
    state = engine.target.begin(10)
    engine.target.prefill(state, torch.arange(5, 9))
    with pytest.raises(DynaSpecError, match="expected 0 to 4 tokens to keep, got 5"):
        engine.target.rewind(state, 5, 10)
    with pytest.raises(DynaSpecError, match="do not fit"):
        engine.target.rewind(state, 2, engine.target.max_context + 1)
