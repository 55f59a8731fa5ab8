"""All targets against plain forward passes of ``transformers``: trees, chunks, commits, greedy
decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree

VOCAB = 97
FAMILIES = ("gemma3", "llama", "llama3", "qwen2", "qwen3")
PATHS = ("native", "static", "transformers")
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}

MakeTarget = Callable[[str, str], Any]
HFModel = Callable[[str], Any]


def full_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of a whole text in one plain pass, no cache."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def random_ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (count,), generator=generator).tolist()


def random_tree(nodes: int, seed: int) -> DraftTree:
    generator = torch.Generator().manual_seed(seed)
    parents = [-1] + [
        int(torch.randint(max(0, i - 5), i, (1,), generator=generator)) for i in range(1, nodes + 1)
    ]
    return DraftTree(torch.tensor(random_ids(nodes + 1, seed + 1)), torch.tensor(parents))


def path_to(tree: DraftTree, row: int) -> list[int]:
    rows = [row]
    while (parent := int(tree.parents[rows[0]])) >= 0:
        rows.insert(0, parent)
    return rows


@pytest.fixture(
    params=[(family, path) for family in FAMILIES for path in PATHS], ids=lambda p: "-".join(p)
)
def pair(
    request: pytest.FixtureRequest, make_target: MakeTarget, hf_model: HFModel
) -> tuple[Any, Any]:
    family, path = request.param
    return make_target(family, path), hf_model(family)


def test_the_native_path_is_taken(make_target: MakeTarget) -> None:
    for family in FAMILIES:
        assert type(make_target(family, "native")).__name__ == "NativeTarget"
        assert type(make_target(family, "static")).__name__ == "StaticTarget"
        assert type(make_target(family, "transformers")).__name__ == "TransformersTarget"


def test_prefill_equals_a_plain_pass(pair: tuple[Any, Any]) -> None:
    target, model = pair
    ids = random_ids(30, 3)
    output = target.prefill(target.begin(64), torch.tensor(ids))
    expected = full_logits(model, ids)
    torch.testing.assert_close(output.logits(), expected, **TOLERANCE)
    assert torch.equal(output.argmax(), expected.argmax(-1))
    rows = torch.tensor([29, 4])
    torch.testing.assert_close(output.logits(rows), expected[rows], **TOLERANCE)
    assert torch.equal(output.leaders(3), expected.topk(3, -1).indices)


def test_features_are_the_input_of_the_final_norm(pair: tuple[Any, Any]) -> None:
    target, model = pair
    ids = random_ids(12, 4)
    seen: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    full_logits(model, ids)
    hook.remove()
    output = target.prefill(target.begin(64), torch.tensor(ids))
    torch.testing.assert_close(output.features.float(), seen[0], **TOLERANCE)
    with torch.inference_mode():
        torch.testing.assert_close(
            target.norm(output.features).float(), model.model.norm(seen[0]), **TOLERANCE
        )
        embedded = model.get_input_embeddings()(torch.tensor(ids))
        torch.testing.assert_close(target.embed(torch.tensor(ids)).float(), embedded, **TOLERANCE)
    assert torch.equal(target.head_weight().data, model.get_output_embeddings().weight)


@pytest.mark.parametrize(("prompt", "nodes"), [(1, 1), (5, 14), (21, 40)])
def test_tree_rows_equal_their_paths(pair: tuple[Any, Any], prompt: int, nodes: int) -> None:
    """Row by row: the logits of a node are those of a plain pass over prompt + path from the root.
    With a window of 8, a prompt of 21 puts keys outside the window, and a deep path moves the
    window inside the tree."""
    target, model = pair
    ids, tree = random_ids(prompt, 7), random_tree(nodes, nodes)
    state = target.begin(64)
    target.prefill(state, torch.tensor(ids))
    output = target.verify(state, tree)
    logits = output.logits()
    for row in range(nodes + 1):
        path = [int(tree.tokens[i]) for i in path_to(tree, row)]
        torch.testing.assert_close(logits[row], full_logits(model, ids + path)[-1], **TOLERANCE)


@pytest.mark.parametrize(("prompt", "nodes"), [(5, 14), (21, 70)])
def test_a_tree_that_grows_is_verified_in_parts(
    pair: tuple[Any, Any], prompt: int, nodes: int
) -> None:
    """Rows that are verified behind earlier ones are those of one pass, also where the cache has to
    grow; then the path is committed and the text goes on."""
    target, model = pair
    ids, tree = random_ids(prompt, 7), random_tree(nodes, nodes)
    state, whole = target.begin(prompt + 8), target.begin(prompt + 8)
    target.prefill(state, torch.tensor(ids))
    target.prefill(whole, torch.tensor(ids))
    expected = target.verify(whole, tree).logits()
    parts, start = [], 0
    for end in (1, 4, 9, nodes + 1):
        grown = DraftTree(tree.tokens[:end], tree.parents[:end])
        parts.append(target.verify(state, grown, start).logits())
        start = end
    if target.bit_exact:
        assert torch.equal(torch.cat(parts), expected)
    torch.testing.assert_close(torch.cat(parts), expected, **TOLERANCE)
    rows = path_to(tree, nodes)[:3]
    target.commit(state, torch.tensor(rows))
    text = ids + [int(tree.tokens[row]) for row in rows]
    more = random_ids(2, 12)
    output = target.prefill(state, torch.tensor(more))
    torch.testing.assert_close(output.logits(), full_logits(model, text + more)[-2:], **TOLERANCE)


def test_a_tree_that_does_not_go_on_is_refused(pair: tuple[Any, Any]) -> None:
    target, _ = pair
    state, tree = target.begin(20), random_tree(6, 1)
    target.prefill(state, torch.tensor([3, 4]))
    for start in (2, 7):
        with pytest.raises(DynaSpecError, match=f"goes on from row 0, got {start} of 7 rows"):
            target.verify(state, tree, start)


def test_a_deep_chain_leaves_its_own_window(pair: tuple[Any, Any]) -> None:
    target, model = pair
    ids, chain = random_ids(3, 8), random_ids(20, 9)
    state = target.begin(64)
    target.prefill(state, torch.tensor(ids))
    output = target.verify(state, DraftTree(torch.tensor(chain), torch.arange(-1, 19)))
    torch.testing.assert_close(output.logits(), full_logits(model, ids + chain)[3:], **TOLERANCE)


def test_commit_then_continue_equals_a_fresh_run(pair: tuple[Any, Any]) -> None:
    """Three rounds of verify and commit of paths that skip rows; then the cache must be that of the
    plain text."""
    target, model = pair
    text = random_ids(9, 11)
    state = target.begin(100)
    target.prefill(state, torch.tensor(text))
    for round_ in range(3):
        tree = random_tree(18, 20 + round_)
        target.verify(state, tree)
        rows = path_to(tree, 18)
        target.commit(state, torch.tensor(rows))
        text += [int(tree.tokens[i]) for i in rows]
        assert state.length == len(text)
    more = random_ids(5, 12)
    output = target.prefill(state, torch.tensor(more))
    torch.testing.assert_close(output.logits(), full_logits(model, text + more)[-5:], **TOLERANCE)


def test_a_tree_larger_than_the_room_grows_the_cache(pair: tuple[Any, Any]) -> None:
    target, model = pair
    ids, tree = random_ids(6, 30), random_tree(150, 31)
    state = target.begin(10)
    target.prefill(state, torch.tensor(ids))
    logits = target.verify(state, tree).logits()
    rows = path_to(tree, 150)
    path = [int(tree.tokens[i]) for i in rows]
    torch.testing.assert_close(logits[150], full_logits(model, ids + path)[-1], **TOLERANCE)


@pytest.mark.parametrize("pieces", [[1] * 24, [7, 17], [23, 1]])
def test_prefill_in_pieces(pair: tuple[Any, Any], pieces: list[int]) -> None:
    target, _ = pair
    ids = torch.tensor(random_ids(24, 13))
    whole = target.prefill(target.begin(64), ids).logits()
    state = target.begin(64)
    parts = [target.prefill(state, piece).logits() for piece in ids.split(pieces)]
    torch.testing.assert_close(torch.cat(parts), whole, **TOLERANCE)


def test_prefill_longer_than_one_pass(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, model = pair
    for module in ("native_target", "transformers_target"):
        monkeypatch.setattr(f"dynaspec_cli.target.{module}.PREFILL_ROWS", 16)
    monkeypatch.setattr("dynaspec_cli.target.static.target.PREFILL_ROWS", (16, 16))
    ids = random_ids(90, 14)
    output = target.prefill(target.begin(128), torch.tensor(ids))
    torch.testing.assert_close(output.logits(), full_logits(model, ids), **TOLERANCE)


def test_greedy_equals_generate(pair: tuple[Any, Any]) -> None:
    target, model = pair
    for seed in range(3):
        ids = random_ids(10, 40 + seed)
        expected = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=40, eos_token_id=None
        )[0, 10:].tolist()
        state = target.begin(64)
        token = int(target.prefill(state, torch.tensor(ids)).argmax()[-1])
        tokens = [token]
        while len(tokens) < 40:
            output = target.verify(state, DraftTree(torch.tensor([token]), torch.tensor([-1])))
            target.commit(state, torch.tensor([0]))
            token = int(output.argmax()[0])
            tokens.append(token)
        assert tokens == expected


def test_requests_do_not_share_state(pair: tuple[Any, Any]) -> None:
    target, model = pair
    first, second = random_ids(8, 50), random_ids(11, 51)
    a, b = target.begin(32), target.begin(32)
    target.prefill(a, torch.tensor(first))
    target.prefill(b, torch.tensor(second))
    token = torch.tensor([5])
    out_a, out_b = target.prefill(a, token), target.prefill(b, token)
    torch.testing.assert_close(out_a.logits()[0], full_logits(model, [*first, 5])[-1], **TOLERANCE)
    torch.testing.assert_close(out_b.logits()[0], full_logits(model, [*second, 5])[-1], **TOLERANCE)


def test_bad_requests_are_refused(pair: tuple[Any, Any]) -> None:
    target, _ = pair
    with pytest.raises(DynaSpecError, match="context of 128"):
        target.begin(129)
    with pytest.raises(DynaSpecError, match="at least 1 token"):
        target.begin(0)
    state = target.begin(4)
    with pytest.raises(DynaSpecError, match="prompt is empty"):
        target.prefill(state, torch.tensor([], dtype=torch.int64))
    with pytest.raises(DynaSpecError, match="5 tokens exceed the 4"):
        target.prefill(state, torch.tensor([1, 2, 3, 4, 5]))
    with pytest.raises(DynaSpecError, match="97 is outside the vocabulary of 97"):
        target.prefill(state, torch.tensor([97]))
    with pytest.raises(DynaSpecError, match="last verified tree"):
        target.commit(state, torch.tensor([0]))
    target.prefill(state, torch.tensor([1]))
    target.verify(state, random_tree(3, 1))
    for rows in ([1], [0, 2, 1], [0, 4], []):
        with pytest.raises(DynaSpecError, match="root first"):
            target.commit(state, torch.tensor(rows, dtype=torch.int64))
    target.commit(state, torch.tensor([0]))
    with pytest.raises(DynaSpecError, match="last verified tree"):
        target.commit(state, torch.tensor([0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close(
    family: str, family_dir: Callable[[str], Any], make_target: MakeTarget
) -> None:
    from dynaspec_cli.target.load import load_target

    ids = torch.tensor(random_ids(20, 60))
    exact = make_target(family, "native")
    rounded = load_target(family_dir(family), family, torch.bfloat16, torch.device("cpu"))
    assert rounded.dtype == torch.bfloat16
    want = exact.prefill(exact.begin(32), ids).logits()
    got = rounded.prefill(rounded.begin(32), ids).logits()
    assert float((want - got).norm() / want.norm()) < 0.05
    assert rounded.head_hash() == exact.head_hash()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_a_tree(
    family: str, dtype: torch.dtype, family_dir: Callable[[str], Any]
) -> None:
    """With the compiled kernels speculation repeats plain decoding exactly, ties and all: a node's
    features and logits are bit for bit those of decoding its path token by token."""
    from dynaspec_cli.ops import backend
    from dynaspec_cli.target.load import load_target

    if backend() == "torch":
        pytest.skip("the PyTorch fallback adds up in an order that depends on the shape")
    target: Any = load_target(family_dir(family), family, dtype, torch.device("cpu"))
    ids, tree = random_ids(19, 70), random_tree(37, 71)
    state = target.begin(64)
    target.prefill(state, torch.tensor(ids))
    output = target.verify(state, tree)
    logits, best = output.logits(), output.argmax()
    for leaf in (37, 30, 22):
        plain = target.begin(64)
        target.prefill(plain, torch.tensor(ids))
        for row in path_to(tree, leaf):
            step = target.verify(plain, DraftTree(tree.tokens[row : row + 1], torch.tensor([-1])))
            target.commit(plain, torch.tensor([0]))
            assert torch.equal(step.features[0], output.features[row])
            assert torch.equal(step.logits()[0], logits[row])
            assert int(step.argmax()[0]) == int(best[row])
