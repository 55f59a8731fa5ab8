"""The registry: what it makes, what it refuses, and seeds."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, TreePolicy
from dynaspec_cli.tree.acceptance import EXAMPLE
from dynaspec_cli.tree.registry import TREES, create_tree, unread

CONTRACT = {"chain", "specinfer", "sequoia", "eagle2", "ddd", "dyspec"}


def test_names_of_the_contract() -> None:
    for name, entry in TREES.items():
        assert entry.description
        assert "\n" not in entry.description
        assert create_tree(TreeConfig(name), SamplingConfig()).name == name
    assert set(TREES.names()) == set(TREES) == CONTRACT | {"auto"}


def test_settings_that_the_policy_does_not_read_are_named() -> None:
    greedy, sampled = SamplingConfig(0.0), SamplingConfig(0.7)
    everything = {
        "acceptance": (0.5,), "expansion": (2,), "ddd_steps": (1,), "threshold": 0.1,
    }  # fmt: skip
    named = {
        "sequoia": ["--tree-expansion", "--ddd-steps", "--tree-threshold"],
        "specinfer": ["--tree-acceptance", "--ddd-steps", "--tree-threshold"],
        "ddd": ["--tree-acceptance", "--tree-expansion"],
        "dyspec": ["--tree-acceptance", "--tree-expansion", "--ddd-steps"],
        "another's": [],
    }
    for policy, options in named.items():
        said = list(unread(TreeConfig(policy, **everything), sampled))
        assert [sentence.split()[0] for sentence in said] == options
        assert list(unread(TreeConfig(policy), sampled)) == []
    traversal = TreeConfig("dyspec", verification="traversal")
    assert list(unread(traversal, sampled)) == []
    assert "no children are drawn" in next(unread(traversal, greedy))
    assert list(unread(TreeConfig("dyspec", verification="traversal", draw="sample"), greedy)) == []


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_draws_need_the_distribution(name: str) -> None:
    """By default children are drawn where the target samples; either can be asked for."""
    for temperature, draw, draws in [
        (0.0, "auto", False),
        (0.7, "auto", True),
        (0.0, "sample", True),
        (0.7, "best", False),
    ]:
        policy = create_tree(TreeConfig(name, draw=draw), SamplingConfig(temperature))
        assert policy.needs_distribution == draws
        assert policy.name == name


def test_temperature_of_the_draft() -> None:
    greedy, hot = SamplingConfig(0.0), SamplingConfig(1.5)
    assert TreeConfig().temperature(greedy) == greedy.draft_temperature == 0.75
    assert TreeConfig().temperature(hot) == 1.5
    assert TreeConfig(draw="best").temperature(hot) == hot.draft_temperature == 1.0
    assert TreeConfig(draw="sample").temperature(greedy) == 0.75
    for sampling in (greedy, hot):
        assert TreeConfig(draft_temperature=0.6).temperature(sampling) == 0.6


def test_names_need_no_torch() -> None:
    code = "import sys, dynaspec_cli.tree.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name() -> None:
    with pytest.raises(
        UsageError, match=r"--tree: expected a tree of chain, .* got 'oak'"
    ) as caught:
        create_tree(TreeConfig("oak"), SamplingConfig())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"draw": "worst"},
        {"draft_temperature": 0.0},
        {"draft_temperature": math.inf},
        {"ddd_steps": (0, 2)},
        {"ddd_steps": ()},
        {"expansion": ()},
        {"expansion": (2, 0)},
        {"expansion": (65,)},
        {"acceptance": ()},
        {"acceptance": (0.7, 0.4)},
        {"acceptance": (-0.1,)},
        {"acceptance": (math.nan,)},
    ],
    ids=str,
)
def test_impossible_options(bad: dict) -> None:
    with pytest.raises(UsageError) as caught:
        TreeConfig(**bad)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def grow(policy: TreePolicy) -> DraftTree:
    generator = torch.Generator().manual_seed(0)
    state, rows = policy.begin(1), 1
    while True:
        log_probs = torch.log_softmax(2 * torch.randn(rows, 40, generator=generator), -1)
        best = torch.topk(log_probs, min(policy.width, 40))
        frontier = policy.grow(
            state,
            DraftHeadOutput(best.values, best.indices, 40, log_probs, torch.arange(40)),
        )
        if frontier is None:
            return policy.finish(state)
        rows = frontier.tokens.numel()


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_a_seed_reproduces_its_trees(name: str) -> None:
    def trees(seed: int) -> list[list[int]]:
        policy = create_tree(TreeConfig(name), SamplingConfig(0.9, seed=seed))
        return [grow(policy).tokens.tolist() for _ in range(3)]

    assert trees(4) == trees(4)
    sampled = create_tree(TreeConfig(name), SamplingConfig(0.9)).needs_distribution
    assert (trees(4) != trees(5)) == sampled


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(CONTRACT))
@pytest.mark.parametrize(
    ("size", "depth", "width"), [(1, 1, 1), (5, 64, 2), (60, 6, 10), (8, 2, 64)]
)
def test_every_shape_yields_a_tree_within_its_limits(
    name: str, temperature: float, size: int, depth: int, width: int
) -> None:
    config = TreeConfig(name, size=size, depth=depth, width=width)
    tree = grow(create_tree(config, SamplingConfig(temperature)))
    parents = tree.parents.tolist()
    assert 1 <= tree.num_nodes <= size
    depths = [0]
    for row in range(1, len(parents)):
        assert 0 <= parents[row] < row
        depths.append(depths[parents[row]] + 1)
    assert max(depths) <= depth


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5, math.nan])
def test_impossible_threshold(threshold: float) -> None:
    with pytest.raises(UsageError, match="--tree-threshold: expected a probability above 0"):
        TreeConfig("dyspec", threshold=threshold)


def test_threshold_reaches_the_policies() -> None:
    for name in ("dyspec", "ddd"):
        config = TreeConfig(name, threshold=0.4)
        assert create_tree(config, SamplingConfig()).threshold == 0.4
        assert create_tree(config, SamplingConfig(0.7)).threshold == 0.4


def test_how_drawn_trees_are_verified_is_what_was_asked() -> None:
    for verification in ("siblings", "traversal"):
        for name in ("dyspec", "sequoia"):
            config = TreeConfig(name, verification=verification)
            policy = create_tree(config, SamplingConfig(1.0))
            assert policy.drawing.traversal == (verification == "traversal")


def test_acceptance_as_given_before_as_measured_before_the_example() -> None:
    given, measured = (0.5, 0.2), (0.4, 0.1)

    def taken(acceptance: tuple[float, ...] | None, found: tuple[float, ...] | None) -> list:
        config = TreeConfig("sequoia", width=2, acceptance=acceptance)
        policy = create_tree(config, SamplingConfig(0.0), acceptance=found)
        return policy.settings["tree_acceptance"]

    assert taken(given, measured) == list(given)
    assert taken(given, None) == list(given)
    assert taken(None, measured) == list(measured)
    assert taken(None, None) == list(EXAMPLE[:2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(CONTRACT - {"specinfer"}))
def test_a_tree_takes_no_more_draft_steps_than_it_has_room_for_nodes(
    name: str, temperature: float
) -> None:
    """What a round may cost at most, before it is drafted, rests on that (tuning/pace.py)."""
    torch.manual_seed(3)
    for size in (1, 2, 3, 5, 8):
        for shared in (False, True):
            config = TreeConfig(name, size=size, depth=6, width=3, threshold=0.01)
            policy = create_tree(config, SamplingConfig(temperature, seed=size))
            for sharp in (0.5, 3.0, 12.0):
                state, rows, steps = policy.begin(0), 1, 0
                while rows:
                    log_probs = (sharp * torch.randn(rows, 40)).log_softmax(-1)
                    best = log_probs.topk(policy.width)
                    ids = torch.arange(40)
                    steps += 1
                    frontier = policy.grow(
                        state,
                        DraftHeadOutput(
                            best.values, best.indices, 40, log_probs, ids, shared=shared
                        ),
                    )
                    rows = 0 if frontier is None else frontier.tokens.numel()
                tree = policy.finish(state)
                assert tree.num_nodes <= size
                assert steps <= min(size, 6)
