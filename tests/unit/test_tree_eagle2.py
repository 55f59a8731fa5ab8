"""EAGLE-2's tree against the whole procedure written down from its description; the chain and DDD
beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, TreePolicy
from dynaspec_cli.tree.chain import Chain
from dynaspec_cli.tree.ddd import DynamicDepth
from dynaspec_cli.tree.eagle2 import Eagle2

Path = tuple[int, ...]


class Oracle:
    """Candidates that are a function of the path: log-softmax of fixed random logits, ``vocab``
    tokens."""

    def __init__(self, seed: int, vocab: int = 12, spread: float = 2.0, grid: float = 0.0) -> None:
        self.seed, self.vocab, self.spread, self.grid = seed, vocab, spread, grid
        self.memo: dict[Path, tuple[list[float], list[int]]] = {}
        self.calls = 0
        self.rows = 0

    def best(self, path: Path, k: int) -> tuple[list[float], list[int]]:
        if path not in self.memo:
            generator = torch.Generator().manual_seed(hash((self.seed, path)) % (1 << 63))
            logits = self.spread * torch.randn(self.vocab, generator=generator)
            log_q = torch.log_softmax(logits, 0)
            if self.grid:
                log_q = torch.round(log_q / self.grid) * self.grid
            values, ids = torch.sort(log_q, descending=True, stable=True)
            self.memo[path] = values.tolist(), ids.tolist()
        values, ids = self.memo[path]
        return values[:k], ids[:k]

    def candidates(self, paths: list[Path], k: int) -> DraftHeadOutput:
        self.calls += 1
        self.rows += len(paths)
        rows = [self.best(path, k) for path in paths]
        return DraftHeadOutput(
            torch.tensor([r[0] for r in rows], dtype=torch.float64),
            torch.tensor([r[1] for r in rows]),
            self.vocab,
        )


def grow(policy: TreePolicy, oracle: Oracle, root: int = 0) -> DraftTree:
    state = policy.begin(root)
    paths: list[Path] = [(root,)]
    stepped: list[Path] = []
    while True:
        frontier = policy.grow(state, oracle.candidates(paths, policy.width))
        if frontier is None:
            return policy.finish(state)
        nodes = []
        for token, parent, source in zip(
            frontier.tokens.tolist(),
            frontier.parents.tolist(),
            frontier.source.tolist(),
            strict=True,
        ):
            nodes.append((*paths[source], token))
            assert paths[source] == ((root,) if parent < 0 else stepped[parent])
        stepped += nodes
        paths = nodes


def paths_of(tree: DraftTree) -> list[Path]:
    """The tokens from the root down to every row, checking that parents come first."""
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    assert tree.tokens.dtype == tree.parents.dtype == torch.int64
    assert parents[0] == -1
    paths: list[Path] = [(tokens[0],)]
    for row in range(1, len(tokens)):
        assert 0 <= parents[row] < row
        paths.append((*paths[parents[row]], tokens[row]))
    assert len(set(paths)) == len(paths)
    return paths


def eagle2_by_the_book(oracle: Oracle, config: TreeConfig, root: int = 0) -> list[Path]:
    """papers' ``topK_genrate``: candidates of every level are kept, the beam is the top of each
    level, the rerank takes the best of all by score (the older of equals), in order of their
    index."""
    candidates: list[tuple[float, Path]] = []
    beam: list[tuple[float, Path]] = [(0.0, (root,))]
    for _ in range(config.depth):
        level = []
        for score, path in beam:
            values, ids = oracle.best(path, config.width)
            level += [(score + v, (*path, t)) for v, t in zip(values, ids, strict=True)]
        candidates += level
        beam = sorted(level, key=lambda c: -c[0])[: config.width]
    order = sorted(range(len(candidates)), key=lambda i: (-candidates[i][0], i))
    return [candidates[i][1] for i in sorted(order[: config.size])]


@pytest.mark.parametrize("grid", [0.0, 0.5])
@pytest.mark.parametrize(
    ("size", "depth", "width"),
    [(1, 1, 1), (4, 1, 8), (8, 3, 2), (16, 6, 4), (60, 6, 10), (60, 2, 4), (3, 8, 3), (300, 4, 5)],
)
def test_eagle2_is_the_full_procedure(size: int, depth: int, width: int, grid: float) -> None:
    """Early stops and pruned beams change nothing, ties (grid) included."""
    config = TreeConfig("eagle2", size=size, depth=depth, width=width)
    for seed in range(12):
        oracle = Oracle(seed, spread=0.5 + seed % 4, grid=grid)
        drafted = paths_of(grow(Eagle2(config), oracle))[1:]
        expected = eagle2_by_the_book(oracle, config)
        assert sorted(drafted) == sorted(expected)
        assert drafted == sorted(drafted, key=len)


def test_eagle2_stops_drafting_when_nothing_can_enter() -> None:
    """A flat draft fills the 8 nodes on its first level, and the second level cannot improve on
    them: the other steps are not paid for. A certain one is followed to the end."""
    config = TreeConfig("eagle2", size=8, depth=10, width=8)
    oracle = Oracle(0, vocab=64, spread=0.1)
    grow(Eagle2(config), oracle)
    assert oracle.calls == 2
    certain = Oracle(0, vocab=64, spread=50.0)
    grow(Eagle2(TreeConfig("eagle2", size=8, depth=6, width=8)), certain)
    assert certain.calls == 6


def test_eagle2_drops_hopeless_rows_from_the_frontier() -> None:
    config = TreeConfig("eagle2", size=10, depth=6, width=8)
    total = sum(_rows(config, seed) for seed in range(10))
    assert total < 10 * (1 + 5 * 8)


def _rows(config: TreeConfig, seed: int) -> int:
    oracle = Oracle(seed)
    grow(Eagle2(config), oracle)
    return oracle.rows


def test_eagle2_with_fewer_candidates_than_width() -> None:
    config = TreeConfig("eagle2", size=30, depth=3, width=8)
    oracle = Oracle(1, vocab=2)
    assert sorted(paths_of(grow(Eagle2(config), oracle))[1:]) == sorted(
        path for path in eagle2_by_the_book(oracle, config)
    )


def test_eagle2_stays_connected_when_rounding_gives_positive_log_probabilities() -> None:
    config = TreeConfig("eagle2", size=3, depth=4, width=2)
    policy = Eagle2(config)
    state = policy.begin(0)
    rows = 1
    for _ in range(4):
        log_q = torch.tensor([[1e-7, -9.0]]).repeat(rows, 1)
        frontier = policy.grow(state, DraftHeadOutput(log_q, torch.tensor([[1, 2]] * rows), 2))
        if frontier is None:
            break
        rows = frontier.tokens.numel()
    assert len(paths_of(policy.finish(state))) == 4


@pytest.mark.parametrize("make", [Chain, Eagle2])
def test_nan_scores_are_refused(make: type) -> None:
    policy = make(TreeConfig(size=4, depth=2, width=2))
    bad = DraftHeadOutput(torch.tensor([[float("nan"), -1.0]]), torch.tensor([[1, 2]]), 2)
    with pytest.raises(DynaSpecError, match="NaN"):
        policy.grow(policy.begin(0), bad)


def test_candidates_of_another_frontier_are_refused() -> None:
    policy = Eagle2(TreeConfig(size=4, depth=2, width=2))
    two_rows = DraftHeadOutput(torch.full((2, 2), -1.0), torch.tensor([[1, 2], [3, 4]]), 4)
    with pytest.raises(DynaSpecError, match="expected candidates for 1 nodes, got 2 rows"):
        policy.grow(policy.begin(0), two_rows)


def test_state_belongs_to_a_round() -> None:
    """The same policy object grows the same tree again, and two rounds at once do not mix."""
    policy = Eagle2(TreeConfig("eagle2", size=9, depth=3, width=3))
    oracle = Oracle(2)
    first = paths_of(grow(policy, oracle))
    other = policy.begin(5)
    policy.grow(other, oracle.candidates([(5,)], 3))
    assert paths_of(grow(policy, oracle)) == first


@pytest.mark.parametrize(("size", "depth", "nodes"), [(16, 5, 5), (3, 5, 3), (1, 1, 1)])
def test_chain_follows_the_best_token(size: int, depth: int, nodes: int) -> None:
    oracle = Oracle(3)
    drafted = paths_of(grow(Chain(TreeConfig("chain", size=size, depth=depth)), oracle))
    path: Path = (0,)
    for node in drafted[1:]:
        path = (*path, oracle.best(path, 1)[1][0])
        assert node == path
    assert len(drafted) == nodes + 1
    assert oracle.calls == nodes


def beam_masses(oracle: Oracle, config: TreeConfig) -> list[float]:
    """H of the full beam after each draft step."""
    beam: list[tuple[float, Path]] = [(0.0, (0,))]
    masses = []
    for _ in range(config.depth):
        level = []
        for score, path in beam:
            values, ids = oracle.best(path, config.width)
            level += [(score + v, (*path, t)) for v, t in zip(values, ids, strict=True)]
        beam = sorted(level, key=lambda c: -c[0])[: config.width]
        masses.append(math.log(sum(math.exp(score) for score, _ in beam)))
    return masses


@pytest.mark.parametrize("steps", [None, (2, 4)])
def test_ddd_stops_at_the_first_improbable_beam(steps: tuple[int, ...] | None) -> None:
    config = TreeConfig("ddd", size=200, depth=7, width=3)
    depths = set()
    for seed in range(30):
        oracle = Oracle(seed, spread=3.0)
        masses = beam_masses(oracle, config)
        expected = config.depth
        for step, mass in enumerate(masses, start=1):
            if mass < -0.3 and (steps is None or step in steps):
                expected = step
                break
        policy = DynamicDepth(replace(config, ddd_steps=steps))
        drafted = grow(policy, oracle)
        assert oracle.calls == expected
        shorter = TreeConfig("eagle2", size=200, depth=expected, width=3)
        assert sorted(paths_of(drafted)[1:]) == sorted(eagle2_by_the_book(oracle, shorter))
        depths.add(expected)
    assert len(depths) >= 2


def test_ddd_counts_the_whole_beam_where_few_are_verified() -> None:
    """H is of the beam, also where most of it cannot be verified any more: a narrower beam would
    end earlier."""
    config = TreeConfig("ddd", size=4, depth=7, width=3)

    class Narrow(DynamicDepth):
        whole_beam = False

    def calls(policy: DynamicDepth, seed: int) -> int:
        oracle = Oracle(seed, spread=3.0)
        grow(policy, oracle)
        return oracle.calls

    pairs = [(calls(DynamicDepth(config), n), calls(Narrow(config), n)) for n in range(40)]
    assert all(whole >= narrow for whole, narrow in pairs)
    assert any(whole > narrow for whole, narrow in pairs)


def test_ddd_ends_at_its_depth_and_below_its_threshold() -> None:
    policy = DynamicDepth(TreeConfig("ddd", depth=7, threshold=0.5))
    assert [policy.ends(level, 1.0) for level in (6, 7, 8)] == [False, True, True]
    assert [policy.ends(3, mass) for mass in (0.4999, 0.5, 0.5001)] == [True, False, False]
    some = DynamicDepth(TreeConfig("ddd", depth=7, threshold=0.5, ddd_steps=(2, 4)))
    assert [some.ends(level, 0.1) for level in (1, 2, 3, 4, 5, 7)] == [
        False, True, False, True, False, True,
    ]  # fmt: skip
