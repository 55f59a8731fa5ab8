"""Every head of the golden directory with its target: prompts, chains, trees, whole greedy loops.

The directory is large and not kept here; see golden_cases.py for where it is looked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_cases as golden
import pytest
import torch
from golden_cases import Case
from plain_heads import bundle_for
from torch import Tensor

from dynaspec_cli.config import SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.tree.registry import TREES, create_tree

ROOT = golden.all_golden()
NAMES = golden.case_names(ROOT)
EAGLES = [name for name in NAMES if name.startswith("eagle")]
OTHERS = [name for name in NAMES if not name.startswith("eagle")]
GREEDY = SamplingConfig(0.0)
EAGLE_TREE = TreeConfig("eagle2", size=15, depth=4, width=4)
"""EAGLE's total_token 16 counts the root; its depth 3 counts the steps after the root's."""

pytestmark = pytest.mark.skipif(ROOT is None, reason="no golden directory")


@pytest.fixture(scope="module")
def case() -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        assert ROOT is not None
        return made.setdefault(name, Case(ROOT / name))

    return make


def greedy(
    case: Case, drafter: Any, shortlist: Any, tree: TreeConfig, length: int
) -> tuple[list[int], list[DraftTree], list[int]]:
    """(new tokens, the trees verified, what each accepted)."""
    trees: list[DraftTree] = []
    verify = case.target.verify

    def watched(state: Any, drafted: DraftTree) -> Any:
        trees.append(drafted)
        return verify(state, drafted)

    parts = Speculation(drafter, shortlist, create_tree(tree, GREEDY))
    room = case.prompt.numel() + length + 80
    tokens: list[int] = []
    accepted: list[int] = []
    case.target.verify = watched
    try:
        source = GeneratorSource(0)
        for emission in decode(case.target, case.prompt, room, GREEDY, source, parts):
            tokens += emission.token_ids
            if emission.step:
                accepted.append(emission.step.accepted)
            if len(tokens) >= length:
                return tokens, trees, accepted
    finally:
        del case.target.verify
    raise AssertionError("decoding ended by itself")


def full(case: Case, drafter: Any) -> Any:
    return shortlists.create(ShortlistConfig("full"), case.target, head=drafter.head, depth=4)


def plain(case: Case) -> list[int]:
    """Greedy tokens after the prompt, as transformers decodes them."""
    from safetensors.torch import load_file

    folder = case.folder.parent / "targets" / case.info["target"]
    ids = load_file(folder / "expected.safetensors")["greedy_ids"].tolist()
    return ids[case.prompt.numel() :]


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_chain(case: Callable[[str], Case], name: str) -> None:
    drafter = case(name).drafter()
    golden.check_prefill(case(name), drafter)
    golden.check_chain(case(name), drafter)


@pytest.mark.parametrize("name", NAMES)
def test_states_are_what_the_target_computes(case: Callable[[str], Case], name: str) -> None:
    c = case(name)
    drafter = c.drafter()
    output = c.target.prefill(c.target.begin(64, drafter.taps), c.prompt)
    if output.taps is None:
        ours, theirs = c.target.norm(output.features), c.expected["target.last_hidden"]
    else:
        ours, theirs = output.taps, c.expected["target.taps"]
    golden.close(ours, theirs)


@pytest.mark.parametrize("name", EAGLES)
def test_beams(case: Callable[[str], Case], name: str) -> None:
    golden.check_beams(case(name), case(name).drafter())


@pytest.mark.parametrize("name", OTHERS)
def test_fixed_tree(case: Callable[[str], Case], name: str) -> None:
    golden.check_fixed_tree(case(name), case(name).drafter())


@pytest.mark.parametrize("name", OTHERS)
def test_training_time_rows(case: Callable[[str], Case], name: str) -> None:
    """Row t at step j has read states up to t and tokens up to t + 1 + j."""
    c = case(name)
    drafter, sequence = c.drafter(), c.expected["ttt.input_sequence"]
    states = c.states(drafter)
    for t in (0, 5, 13, 20):
        state = drafter.begin(c.prompt, 64)
        hidden = drafter.read(state, states[: t + 1], sequence[1 : t + 2])[-1:]
        for j in range(4):
            if t + 1 + j >= sequence.numel():
                break
            if j:
                token = int(sequence[t + 1 + j])
                hidden = drafter.step(state, golden.frontier([token], [j - 2], [0])).hidden
            golden.close_logits(drafter, hidden, c.expected["ttt.logits"][j, t][None])


@pytest.mark.parametrize("name", EAGLES)
def test_first_tree_node_by_node(case: Callable[[str], Case], name: str) -> None:
    c = case(name)
    drafter = c.drafter()
    _, trees, _ = greedy(c, drafter, full(c, drafter), EAGLE_TREE, 2)
    same_tree(trees[0], c.expected["tree.draft_tokens"], c.expected["tree.parents"])


@pytest.mark.parametrize("name", EAGLES)
def test_whole_greedy_loop(case: Callable[[str], Case], name: str) -> None:
    """Every round's tree, what it accepted, and the text."""
    c, e = case(name), case(name).expected
    drafter, rounds = c.drafter(), e["loop.accept_length"].numel()
    text = e["loop.output_ids"][c.prompt.numel() :].tolist()
    length = 2 + rounds + int(e["loop.accept_length"].sum())  # into the round of the last tree
    tokens, trees, accepted = greedy(c, drafter, full(c, drafter), EAGLE_TREE, length)
    assert tokens[: len(text)] == text[: len(tokens)]
    assert accepted[:rounds] == e["loop.accept_length"].tolist()
    assert len(trees) == rounds + 1 == e["loop.parents"].shape[0]
    for tree, drafted, parents in zip(
        trees, e["loop.draft_tokens"], e["loop.parents"], strict=True
    ):
        same_tree(tree, drafted, parents)


def same_tree(ours: DraftTree, tokens: Tensor, parents: Tensor) -> None:
    assert paths(ours.tokens.tolist(), ours.parents.tolist()) == paths(
        tokens.tolist(), parents.tolist()
    )


def paths(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    """Every node as the tokens from the root to it, sorted."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((token,) if parent < 0 else (*found[parent], token))
    return sorted(found)


@pytest.mark.parametrize("name", OTHERS)
def test_older_config_means_the_same_head(
    case: Callable[[str], Case], name: str, tmp_path: Path
) -> None:
    shutil.copytree(case(name).folder, tmp_path / "old")
    (tmp_path / "old" / "config.transformers4.json").replace(tmp_path / "old" / "config.json")
    old = Case(tmp_path / "old", case(name).target)
    assert old.drafter().config == case(name).drafter().config


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_plain_decodings(case: Callable[[str], Case], name: str, tree: str) -> None:
    c = case(name)
    drafter = c.drafter()
    expected = plain(c)
    config = TreeConfig(tree, size=12, depth=4, width=3)
    tokens, _, _ = greedy(c, drafter, full(c, drafter), config, len(expected))
    assert tokens[: len(expected)] == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_transformers_target_serves_heads_alike(name: str) -> None:
    from dynaspec_cli.target.load import load_transformers

    assert ROOT is not None
    folder = ROOT / name
    info = json.loads((folder / "expected.json").read_text())
    where = ROOT / "targets" / info["target"]
    c = Case(folder, load_transformers(where, "transformers", torch.float32, golden.CPU))
    drafter, expected = c.drafter(), plain(c)
    golden.check_prefill(c, drafter)
    tokens, trees, _ = greedy(c, drafter, full(c, drafter), EAGLE_TREE, len(expected))
    assert tokens[: len(expected)] == expected
    if "tree.parents" in c.expected and "loop.parents" in c.expected:
        same_tree(trees[0], c.expected["tree.draft_tokens"], c.expected["tree.parents"])


@pytest.mark.parametrize("method", shortlists.SHORTLISTS)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_with_every_shortlist(
    case: Callable[[str], Case], name: str, method: str
) -> None:
    """Shortlists choose among the rows that the head has."""
    c = case(name)
    drafter, expected = c.drafter(), plain(c)
    config = ShortlistConfig(method, None if method == "full" else 200)
    shortlist = shortlists.create(
        config, c.target, bundle_for(c.target), head=drafter.head, depth=4
    )
    tokens, trees, _ = greedy(c, drafter, shortlist, EAGLE_TREE, len(expected))
    assert tokens[: len(expected)] == expected
    drafted = torch.cat([tree.tokens[1:] for tree in trees])
    assert drafted.numel() > 0
    if drafter.head.vocab is not None:
        assert bool(drafter.head.vocab.mask()[drafted].all())


@pytest.mark.parametrize("name", NAMES)
def test_taps_off_by_one(case: Callable[[str], Case], name: str) -> None:
    """The prompt's vectors show it where the head reads taps."""
    c = case(name)
    right = c.drafter()
    if not right.taps:
        pytest.skip("reads the last hidden state")
    if right.taps[-1] == c.target.num_layers:
        with pytest.raises(DynaSpecError, match=r"enters layer 9, but llama has 8 layers"):
            c.drafter(taps=",".join(str(tap + 1) for tap in right.taps))
        return
    wrong = c.drafter(taps=",".join(str(tap + 1) for tap in right.taps))
    output = c.target.prefill(c.target.begin(64, wrong.taps), c.prompt)
    rows = torch.arange(c.prompt.numel())
    hidden = wrong.read(wrong.begin(c.prompt, 64), wrong.states(output, rows), c.following)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        golden.close_logits(wrong, hidden, c.expected["prefill.logits"])
