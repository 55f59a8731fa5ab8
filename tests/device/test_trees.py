"""Trees in fixed shapes are the host policies' trees: tokens, parents, order, laws and numbers."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.growth import growth_of
from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.verify import SampledDrafts
from dynaspec_cli.tree.registry import create_tree

from .worlds import World, device_tree, host_tree, policy_of

GREEDY = SamplingConfig(temperature=0.0)
POLICIES = ("chain", "eagle2", "ddd", "dyspec", "sequoia", "specinfer")


def same_tree(got: DraftTree, want: DraftTree) -> None:
    assert got.tokens.tolist() == want.tokens.tolist()
    assert got.parents.tolist() == want.parents.tolist()
    assert (got.values is None) == (want.values is None)
    if want.values is not None:
        # Draws have the probabilities of a float32 softmax, whose order of summation is its own.
        near = 1e-12 if want.q is None else 1e-5
        assert got.values == pytest.approx(want.values, rel=near)
    assert (got.q is None) == (want.q is None)
    if isinstance(want.q, SampledDrafts):
        same_drafts(got.q, want.q)


def same_drafts(got: SampledDrafts, want: SampledDrafts) -> None:
    names = ("replacement", "drawn", "distinct", "traversal")
    assert [getattr(got, n) for n in names] == [getattr(want, n) for n in names]
    assert sorted(got.nodes) == sorted(want.nodes)
    assert len(got.nodes) == len(want.nodes)
    for row, draft in want.nodes.items():
        mine = got.nodes[row]
        assert mine.draws == draft.draws
        assert torch.equal(mine.ids, draft.ids)
        torch.testing.assert_close(mine.q, draft.q, rtol=1e-5, atol=1e-8)


def configs(policy: str) -> list[TreeConfig]:
    shapes = [(8, 4, 3), (12, 5, 4), (1, 3, 2), (30, 3, 6), (5, 6, 1)]
    found = [TreeConfig(policy, n, depth=d, width=w) for n, d, w in shapes]
    if policy == "ddd":
        found += [TreeConfig(policy, 8, depth=5, width=4, threshold=t) for t in (0.2, 0.05)]
        found.append(TreeConfig(policy, 8, depth=5, width=4, threshold=0.99, ddd_steps=(3,)))
    if policy == "dyspec":
        found += [TreeConfig(policy, 8, depth=5, width=4, threshold=t) for t in (0.5, 0.01)]
    if policy == "specinfer":
        found += [TreeConfig(policy, 30, depth=4, expansion=e) for e in ((3, 2, 2), (2, 1, 4))]
    if policy == "sequoia":
        found.append(TreeConfig(policy, 20, depth=6, width=6, acceptance=(0.3, 0.25, 0.2, 0.1)))
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ties", [False, True])
def test_best_tokens(policy: str, ties: bool) -> None:
    for seed, config in enumerate(configs(policy)):
        for heat, size in ((0.6, 24), (2.0, 24), (5.0, 24), (2.0, 2)):
            world = World(seed, size, heat, ties)
            mine, source = policy_of(config, GREEDY, seed)
            want, steps = host_tree(world, policy_of(config, GREEDY, seed)[0], 3)
            got, taken = device_tree(world, mine, 3, source)
            same_tree(got, want)
            assert taken == steps


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_drawn(policy: str, shared: bool) -> None:
    laws = [SamplingConfig(1.0), SamplingConfig(0.7, top_k=5), SamplingConfig(1.3, top_p=0.8)]
    laws += [SamplingConfig(0.9, min_p=0.1), SamplingConfig(1.0, top_k=9, top_p=0.7, min_p=0.05)]
    for seed, config in enumerate(configs(policy)):
        for law in laws:
            for heat, size in ((0.6, 24), (3.0, 24), (1.0, 3)):
                world = World(seed, size, heat, shared=shared)
                host, before = policy_of(config, law, seed)
                mine, source = policy_of(config, law, seed)
                for root in (3, 8):  # two rounds: the generators must stand alike after each
                    want, steps = host_tree(world, host, root)
                    got, taken = device_tree(world, mine, root, source)
                    same_tree(got, want)
                    assert taken == steps
                assert torch.equal(before.generator.get_state(), source.generator.get_state())


def test_worlds_use_what_they_test() -> None:
    """Ends before the last level, merged draws, discarded ones: all of it happens."""
    merged = discarded = stopped = 0
    for seed in range(12):
        for policy in ("specinfer", "eagle2"):
            config = TreeConfig(policy, 12, depth=5, width=4)
            made, source = policy_of(config, SamplingConfig(1.0), seed)
            tree, steps = device_tree(World(seed, heat=3.0, shared=False), made, 1, source)
            merged += policy == "specinfer" and tree.q.drawn > tree.q.distinct
            discarded += policy == "eagle2" and tree.q.distinct > tree.num_nodes
            stopped += steps < 5
    assert min(merged, discarded, stopped) > 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_score_that_is_no_number_is_an_error(policy: str, temperature: float) -> None:
    class Broken(World):
        def log_probs(self, path: tuple[int, ...]) -> torch.Tensor:
            return super().log_probs(path) * (torch.nan if len(path) == 2 else 1)

    config = TreeConfig(policy, 8, depth=4, width=3, threshold=None)
    made, source = policy_of(config, SamplingConfig(temperature), 0)
    with pytest.raises(NotFiniteError):
        device_tree(Broken(1, heat=5.0), made, 1, source)


def test_policies_without_such_a_form_are_named() -> None:
    assert growth_of(create_tree(TreeConfig("auto"), GREEDY), False) is None
