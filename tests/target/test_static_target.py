"""The static target against the native one: caches, decoding with every tree, what is refused."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.errors import DynaSpecError, NotFiniteError
from dynaspec_cli.protocols import DecidingTarget, DraftTree
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.target.static import sizes
from dynaspec_cli.target.static import step as static_step
from dynaspec_cli.target.static import target as static_target
from dynaspec_cli.target.static.sizes import SCRATCH_ROWS, context_of, rows_of
from dynaspec_cli.target.static.step import Mode
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.tree.registry import TREES, create_tree

PROMPT = torch.tensor([5, 9, 60, 31, 77, 5, 9])
STEPS = 4
SAMPLING = {
    "greedy": SamplingConfig(),
    "sampled": SamplingConfig(temperature=1.0, seed=3),
    "filtered": SamplingConfig(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=3),
}


def drafter_of(target: Any, reader: Any) -> EagleDrafter:
    """Begun from the target: accepted often, and often not."""
    torch.manual_seed(0)
    module = from_target(drafter_config(reader, 1, 1.0), reader)
    return EagleDrafter(module.config, dict(module.state_dict()), target)


def tokens_of(target: Any, reader: Any, tree: TreeConfig | None, sampling: Any) -> list[int]:
    speculation = None
    if tree is not None:
        shortlist = FullShortlist(build_head(target.head_weight()))
        policy = create_tree(tree, sampling)
        speculation = Speculation(drafter_of(target, reader), shortlist, policy)
    source = GeneratorSource(sampling.seed)
    steps = islice(decode(target, PROMPT, 100, sampling, source, speculation), STEPS + 1)
    return [token for emission in steps for token in emission.token_ids]


DRAWS = (("greedy", "best"), ("sampled", "best"), ("sampled", "sample"))
CASES = [
    (family, tree, *draw)
    for family in FAMILIES
    for tree in TREES.names()
    for draw in DRAWS
    if not (tree == "auto" and draw[0] != "greedy")  # refused: timed trees have no seed
]
CASES += [("gemma3", tree, "filtered", "best") for tree in TREES.names() if tree != "auto"]


@pytest.mark.parametrize(("family", "tree", "name", "draw"), CASES)
def test_every_tree_emits_the_cpus_tokens(
    make_target: Any, family: str, tree: str, name: str, draw: str
) -> None:
    native, static = make_target(family, "native"), make_target(family, "static")
    reader = make_target(family, "transformers")
    try:
        config = TreeConfig(policy=tree, size=9, depth=3, width=3, draw=draw)
    except DynaSpecError:
        pytest.skip("this tree has no such draws")
    expected = tokens_of(native, reader, config, SAMPLING[name])
    got = tokens_of(static, reader, config, SAMPLING[name])
    # A timed tree's steps are of other sizes each time.
    length = min(len(got), len(expected)) if tree == "auto" else None
    assert got[:length] == expected[:length]


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_decoding(make_target: Any, family: str, name: str) -> None:
    native, static = make_target(family, "native"), make_target(family, "static")
    expected = tokens_of(native, None, None, SAMPLING[name])
    assert tokens_of(static, None, None, SAMPLING[name]) == expected


def random_tree(nodes: int, seed: int) -> DraftTree:
    g = torch.Generator().manual_seed(seed)
    parents = [-1] + [
        int(torch.randint(max(0, i - 5), i, (1,), generator=g)) for i in range(1, nodes + 1)
    ]
    return DraftTree(torch.randint(2, 97, (nodes + 1,), generator=g), torch.tensor(parents))


@pytest.mark.parametrize("nodes", [0, 11, 15, 16, 40, 90])
@pytest.mark.parametrize("family", FAMILIES)
def test_caches_hold_what_the_native_ones_hold(make_target: Any, family: str, nodes: int) -> None:
    """After each of three rounds whose trees hold the greedy path, and of every size class."""
    native, static = make_target(family, "native"), make_target(family, "static")
    ours, theirs = static.begin(60, (0, 2)), native.begin(60, (0, 2))
    static.prefill(ours, PROMPT)
    token = int(native.prefill(theirs, PROMPT).argmax()[-1])
    for round_ in range(3):
        tree = random_tree(nodes, 7 + round_)
        tree.tokens[0] = token
        for depth in range(3):  # plant the target's own choice below the rows on the path
            choice = native.verify(theirs, tree).argmax()
            path = [0]
            for row in range(1, nodes + 1):
                if int(tree.parents[row]) == path[-1] and tree.tokens[row] == choice[path[-1]]:
                    path.append(row)
            below = [r for r in range(1, nodes + 1) if int(tree.parents[r]) == path[-1]]
            if below:
                tree.tokens[below[depth % len(below)]] = choice[path[-1]]
        output = native.verify(theirs, tree)
        decision = static.decide(ours, tree, SAMPLING["greedy"], None)
        assert torch.equal(decision.output.argmax(), output.argmax())
        torch.testing.assert_close(decision.output.features, output.features, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(decision.output.taps, output.taps, atol=1e-3, rtol=1e-4)
        assert decision.bonus == int(output.argmax()[decision.path[-1]])
        assert decision.path.numel() > (nodes > 0)
        for target, state in ((native, theirs), (static, ours)):
            target.commit(state, decision.path)
        token = decision.bonus
        assert ours.length == theirs.length == int(ours.arena.length)
        for layer in range(native.num_layers):
            for mine, other in (
                (ours.arena.keys[layer], theirs.keys[layer]),
                (ours.arena.values[layer], theirs.values[layer]),
            ):
                held = slice(0, ours.length)
                torch.testing.assert_close(mine[held], other[held], atol=1e-3, rtol=1e-4)


def test_padding_leaves_the_committed_rows_alone(make_target: Any) -> None:
    static = make_target("llama", "static")
    state = static.begin(40)
    static.prefill(state, PROMPT)
    before = state.arena.keys.clone()
    static.verify(state, random_tree(3, 1))
    changed = (state.arena.keys != before).flatten(2).any(2).any(0).nonzero()[:, 0].tolist()
    length, capacity = PROMPT.numel(), state.arena.capacity
    assert changed[:4] == list(range(length, length + 4))
    assert all(capacity <= row < capacity + SCRATCH_ROWS for row in changed[4:])


def test_sizes() -> None:
    assert [rows_of(n) for n in (1, 2, 16, 17, 32, 33, 64, 65, 1025)] == [
        16, 16, 16, 32, 32, 64, 64, 128, 1088,
    ]  # fmt: skip
    assert [context_of(n, 5000) for n in (1, 1024, 1025, 4000, 4097, 5000)] == [
        1024, 1024, 2048, 4096, 5000, 5000,
    ]  # fmt: skip


def test_plain_decoding_has_the_shapes_of_a_small_tree(make_target: Any, monkeypatch: Any) -> None:
    """So its matrix products are the same: the passes differ in no form."""
    static, forms = make_target("llama", "static"), []
    state = static.begin(40)
    static.prefill(state, PROMPT)
    run = type(state.graphs).run
    monkeypatch.setattr(
        type(state.graphs), "run", lambda self, form: (forms.append(form), run(self, form))
    )
    for nodes in (0, 7, 15, 16):
        static.decide(state, random_tree(nodes, 2), SAMPLING["greedy"], None)
    assert forms[0] == forms[1] == forms[2] != forms[3]
    assert forms[0].mode is Mode.GREEDY


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_that_splits_keys_is_attention(
    make_target: Any, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Windows and caps too; long contexts have it, here it is asked for at once."""
    tree, reader = TreeConfig("eagle2", 9, depth=3, width=3), make_target(family, "transformers")
    static, used = make_target(family, "static"), []
    expected = tokens_of(static, reader, tree, SAMPLING["sampled"])
    monkeypatch.setattr(sizes, "SPLIT_FROM", 0)
    monkeypatch.setattr(sizes, "KEYS_A_SPLIT", 32)
    attention = static_step.tree_attention
    monkeypatch.setattr(
        static_step, "tree_attention", lambda *args: used.append(args[-1]) or attention(*args)
    )
    assert tokens_of(static, reader, tree, SAMPLING["sampled"]) == expected
    assert min(used) == 8


def test_long_contexts_split_keys() -> None:
    found = {n: sizes.splits_of(16, n) for n in (1024, 2048, 4096, 5120, 8192, 16384, 131072)}
    assert found == {1024: 0, 2048: 0, 4096: 8, 5120: 8, 8192: 16, 16384: 32, 131072: 32}
    assert sizes.splits_of(64, 8192) == 16
    assert sizes.splits_of(128, 8192) == 0  # ancestors are 64 bits


def test_it_decides_what_it_can(make_target: Any) -> None:
    static, native = make_target("llama", "static"), make_target("llama", "native")
    assert isinstance(static, DecidingTarget)
    assert not isinstance(native, DecidingTarget)
    state = static.begin(40)
    static.prefill(state, PROMPT)
    uniforms = torch.rand(200, dtype=torch.float64)
    drawn = DraftTree(torch.tensor([3]), torch.tensor([-1]), q="drawn")
    assert static.decide(state, drawn, SAMPLING["sampled"], uniforms) is None
    assert static.decide(state, random_tree(64, 1), SAMPLING["sampled"], uniforms) is None
    assert static.decide(state, random_tree(63, 1), SAMPLING["sampled"], uniforms) is not None


def test_a_path_that_the_device_did_not_keep_is_refused(make_target: Any) -> None:
    static = make_target("llama", "static")
    state = static.begin(40)
    static.prefill(state, PROMPT)
    tree = random_tree(6, 5)
    decision = static.decide(state, tree, SAMPLING["greedy"], None)
    other = torch.tensor([0, 1]) if decision.path.numel() == 1 else torch.tensor([0])
    with pytest.raises(DynaSpecError, match="the device has kept rows"):
        static.commit(state, other)
    # What was not committed is undone by the next pass.
    again = static.decide(state, tree, SAMPLING["greedy"], None)
    assert torch.equal(again.path, decision.path)
    assert int(state.arena.length) == PROMPT.numel() + decision.path.numel()


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_logits_that_are_no_numbers_are_an_error(make_target: Any, name: str) -> None:
    """On every device: a flag beside the result. The next request finds clean caches."""
    static = make_target("llama", "static")
    expected = tokens_of(static, None, None, SAMPLING[name])
    state = static.begin(40)
    static.prefill(state, PROMPT)
    weight = static._model.weights.layers[0].down
    kept = weight.clone()
    weight[0, 0] = torch.nan
    uniforms = None if name == "greedy" else torch.rand(9, dtype=torch.float64)
    try:
        with pytest.raises(NotFiniteError, match="target's logits hold NaN"):
            static.decide(state, random_tree(3, 1), SAMPLING[name], uniforms)
        with pytest.raises(NotFiniteError, match="target's logits hold NaN"):
            static.verify(state, random_tree(3, 1))
    finally:
        weight.copy_(kept)
    arena = state.arena
    del state
    assert arena.keys.isfinite().all()
    assert tokens_of(static, None, None, SAMPLING[name]) == expected


def test_arenas_are_used_again(make_target: Any, monkeypatch: Any) -> None:
    static = make_target("qwen3", "static")
    made = []
    new = static_target.Arena.new
    monkeypatch.setattr(
        static_target.Arena, "new", lambda *args: made.append(new(*args)) or made[-1]
    )
    static._free.clear()
    first = static.begin(50)
    second = static.begin(20)
    assert len(made) == 2
    assert first.arena is not second.arena
    arena = first.arena
    del first
    assert static.begin(60).arena is arena
    assert len(made) == 2
    del second
