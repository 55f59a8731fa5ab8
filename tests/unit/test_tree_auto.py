"""``auto`` on a simulated clock: it finds the depth and size that pay, and learns costs from time
alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, TreePolicy
from dynaspec_cli.tree.auto import EXPLORE, WARM_UP, Auto
from dynaspec_cli.tree.costs import LinearCost, Ratio
from dynaspec_cli.tree.eagle2 import Eagle2
from dynaspec_cli.tree.registry import create_tree


class Machine:
    """A clock that moves when something is done: seconds of a draft step, of a verification and of
    each node in it. A drafted child is the right one with its probability; children have
    ``chances``."""

    def __init__(
        self, step: float, verify: float, node: float, chances: tuple[float, ...] = (0.6, 0.2, 0.1)
    ) -> None:
        self.step, self.verify, self.node = step, verify, node
        self.chances = chances
        self.now = 0.0
        self.steps: list[int] = []
        self.nodes: list[int] = []
        self.expected = 0.0

    def clock(self) -> float:
        return self.now

    def round(self, policy: TreePolicy) -> DraftTree:
        state, rows, steps = policy.begin(0), 1, 0
        while True:
            self.now += self.step
            steps += 1
            log_q = torch.tensor([self.chances]).log().repeat(rows, 1)
            ids = torch.arange(len(self.chances)).repeat(rows, 1)
            frontier = policy.grow(state, DraftHeadOutput(log_q, ids, 9))
            if frontier is None:
                break
            rows = frontier.tokens.numel()
        tree = policy.finish(state)
        self.now += self.verify + self.node * tree.num_nodes
        self.steps.append(steps)
        self.nodes.append(tree.num_nodes)
        self.expected += 1 + self.expected_accepted(tree)
        return tree

    def expected_accepted(self, tree: DraftTree) -> float:
        value = [1.0]
        for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
            value.append(value[parent] * self.chances[token])
        return math.fsum(value[1:])


def rate(machine: Machine, policy: TreePolicy, rounds: int = 200) -> float:
    """Expected tokens per second."""
    for _ in range(rounds):
        machine.round(policy)
    return machine.expected / machine.now


MACHINES = {
    "cheap steps": (0.1, 10.0, 0.0),
    "dear steps": (8.0, 10.0, 0.0),
    "dear nodes": (0.5, 5.0, 2.0),
    "all dear": (3.0, 10.0, 1.0),
    "full-vocabulary head": (11.0, 22.0, 0.2),
}


@pytest.mark.parametrize("costs", MACHINES)
def test_not_slower_than_the_best_fixed_shape(costs: str) -> None:
    """Against EAGLE-2 at every depth and six sizes, the best of them on that machine, once costs
    are learned."""
    machine = Machine(*MACHINES[costs])
    policy = Auto(TreeConfig("auto", size=32, depth=8, width=3), machine.clock)
    rate(machine, policy, rounds=40)
    start, tokens = machine.now, machine.expected
    rate(machine, policy)
    auto = (machine.expected - tokens) / (machine.now - start)
    fixed = {
        (depth, size): rate(
            Machine(*MACHINES[costs]), Eagle2(TreeConfig("eagle2", size, depth, 3)), rounds=1
        )
        for depth in range(1, 9)
        for size in (1, 2, 4, 8, 16, 32)
    }
    assert auto > 0.96 * max(fixed.values())
    assert auto > 1.2 * min(fixed.values())


def test_depth_follows_the_cost_of_a_step() -> None:
    def late_depth(step: float) -> float:
        machine = Machine(step, 10.0, 0.0)
        rate(machine, Auto(TreeConfig("auto", size=32, depth=8, width=3), machine.clock))
        late = machine.steps[-EXPLORE + 1 :]
        return sum(late) / len(late)

    depths = [late_depth(step) for step in (0.1, 3.0, 10.0)]
    assert depths[0] > depths[1] > depths[2]


def test_size_follows_the_cost_of_a_node() -> None:
    def late_size(node: float) -> int:
        machine = Machine(0.1, 10.0, node)
        rate(machine, Auto(TreeConfig("auto", size=32, depth=8, width=3), machine.clock))
        return machine.nodes[-2]

    sizes = [late_size(node) for node in (0.0, 0.5, 5.0)]
    assert sizes[0] == 32
    assert sizes[0] > sizes[1] > sizes[2] >= 1


def test_costs_are_learned_from_the_clock() -> None:
    machine = Machine(2.0, 7.0, 0.25)
    policy = Auto(TreeConfig("auto", size=16, depth=5, width=3), machine.clock)
    rate(machine, policy, rounds=30)
    assert policy.step_cost.at(3) == pytest.approx(2.0)
    assert policy.verify_cost.slope == pytest.approx(0.25)
    assert policy.verify_cost.at(10) == pytest.approx(7.0 + 10 * 0.25)


def test_a_change_of_the_text_is_followed() -> None:
    """The draft becomes unsure: the depth falls without any new setting."""
    machine = Machine(3.0, 10.0, 0.0, chances=(0.9, 0.05, 0.02))
    policy = Auto(TreeConfig("auto", size=32, depth=8, width=3), machine.clock)
    rate(machine, policy, rounds=40)
    sure = machine.steps[-2]
    machine.chances = (0.3, 0.2, 0.1)
    rate(machine, policy, rounds=40)
    assert machine.steps[-2] < sure


def test_exploration_goes_one_step_deeper() -> None:
    """So a draft that has become sure is noticed, though deep steps had not paid before."""
    machine = Machine(3.0, 10.0, 0.0, chances=(0.3, 0.2, 0.1))
    policy = Auto(TreeConfig("auto", size=32, depth=8, width=3), machine.clock)
    rate(machine, policy, rounds=2 * EXPLORE)
    assert machine.steps[:WARM_UP] == [max(machine.steps)] * WARM_UP
    assert machine.steps[EXPLORE - 1] == machine.steps[EXPLORE - 2] + 1
    assert machine.steps[EXPLORE] == machine.steps[EXPLORE - 2] < max(machine.steps)
    machine.chances = (0.9, 0.05, 0.02)
    before = machine.steps[-2]
    rate(machine, policy, rounds=8 * EXPLORE)
    assert machine.steps[-2] > before + 1


def test_nodes_that_are_too_dear_leave_one() -> None:
    machine = Machine(0.1, 10.0, 50.0)
    rate(machine, Auto(TreeConfig("auto", size=32, depth=8, width=3), machine.clock))
    assert machine.nodes[-1] == 1


def test_what_nothing_below_can_replace_is_not_expanded() -> None:
    """The least of the kept nodes: its children can be worth no more than it."""
    policy = Auto(TreeConfig("auto", size=3, depth=2, width=3), itertools.count().__next__)
    candidates = DraftHeadOutput(-torch.arange(1.0, 4.0)[None], torch.arange(3)[None], 3)
    frontier = policy.grow(policy.begin(0), candidates)
    assert frontier is not None
    assert frontier.tokens.tolist() == [0, 1]


def test_it_takes_the_best_tokens_alone() -> None:
    policy = create_tree(TreeConfig("auto"), SamplingConfig(0.0))
    assert not policy.needs_distribution
    with pytest.raises(UsageError, match="--tree-draw"):
        create_tree(TreeConfig("auto", draw="sample"), SamplingConfig(0.0))


def test_sampling_is_refused() -> None:
    with pytest.raises(UsageError, match="--tree auto") as caught:
        create_tree(TreeConfig("auto"), SamplingConfig(0.8))
    assert "seed" in str(caught.value)


def test_linear_cost() -> None:
    cost = LinearCost()
    assert cost.at(5) == 0.0
    cost.add(4, 3.0)
    assert cost.slope == 0.0
    assert cost.at(9) == 3.0
    for x in (1, 2, 3, 8):
        cost.add(x, 1.0 + 0.5 * x)
    assert cost.slope == pytest.approx(0.5)
    assert cost.at(10) == pytest.approx(6.0)
    cost.add(3, 1000.0)  # an interruption
    assert cost.at(10) == pytest.approx(6.0)


def test_what_is_an_interruption() -> None:
    """Four times the mean is one, less is not; of the first two nothing is known."""
    cost = LinearCost()
    cost.add(1, 1.0)
    cost.add(1, 9.0)
    assert cost.at(1) == pytest.approx((0.95 + 9) / 1.95)
    for _ in range(200):
        cost.add(1, 1.0)
    cost.add(1, 4.01)
    assert cost.at(1) == pytest.approx(1.0, abs=1e-3)
    cost.add(1, 3.9)
    assert cost.at(1) == pytest.approx(1.0 + 2.9 / 20, rel=1e-3)


def test_a_falling_cost_is_no_cost() -> None:
    cost = LinearCost()
    for x in (1, 2, 3):
        cost.add(x, 4.0 - x)
    assert cost.slope == 0.0


def test_ratio() -> None:
    ratio = Ratio()
    assert ratio.value(7.0) == 7.0
    ratio.add(1.0, 2.0)
    ratio.add(3.0, 2.0)
    assert ratio.value(0.0) == pytest.approx((0.95 + 3) / (1.9 + 2))
    small = Ratio()
    small.add(1.0, 0.5)
    assert small.value(7.0) == 2.0


def test_warm_up_rounds_are_whole_and_half_in_turn() -> None:
    """So that the seconds of a node can be told from those of a pass; 5 of 8, then 3."""
    policy = Auto(TreeConfig("auto", size=5, depth=1, width=8), itertools.count().__next__)
    candidates = DraftHeadOutput(-torch.arange(1.0, 9.0)[None], torch.arange(8)[None], 8)
    sizes = []
    for _ in range(4):
        state = policy.begin(0)
        assert policy.grow(state, candidates) is None
        sizes.append(policy.finish(state).num_nodes)
    assert sizes == [5, 3, 5, 3]
