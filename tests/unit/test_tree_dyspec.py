"""DySpec: the greedy heap's optimality, the layer-wise form against Algorithm 1, and what a slot
may depend on."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, TreePolicy
from dynaspec_cli.tree.registry import create_tree

Path = tuple[int, ...]
SAMPLING = SamplingConfig(temperature=1.0)


class Law:
    """d(. | path) over ``vocab`` tokens, float64, fixed by (seed, path)."""

    def __init__(self, seed: int, vocab: int, spread: float = 1.5) -> None:
        self.seed, self.vocab, self.spread = seed, vocab, spread

    def d(self, path: Path) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, path)) % (1 << 63))
        noise = torch.randn(self.vocab, generator=generator, dtype=torch.float64)
        return torch.softmax(self.spread * noise, 0)


class InOrder:
    """A source that draws fixed orders: the k-th draw of a node is the token at place k of
    ``order(path)``. It is told the paths of the frontier before each draw."""

    def __init__(self, law: Law, shuffle: int) -> None:
        self.law, self.shuffle = law, shuffle
        self.paths: list[Path] = []

    def order(self, path: Path) -> list[int]:
        generator = torch.Generator().manual_seed(hash((self.shuffle, path)) % (1 << 63))
        return torch.multinomial(
            self.law.d(path), self.law.vocab, replacement=False, generator=generator
        ).tolist()

    def uniforms(
        self, law: Callable[[], Tensor], counts: Sequence[int], replacement: bool
    ) -> Tensor:
        """The middle of each draw's interval in what the earlier ones left."""
        assert not replacement
        uniforms = torch.zeros(len(counts), max(counts), dtype=torch.float64)
        for i, (path, row) in enumerate(zip(self.paths, law(), strict=True)):
            left = row.double().clone()
            for j, token in enumerate(self.order(path)[: counts[i]]):
                middle = left[:token].sum() + left[token] / 2
                uniforms[i, j] = middle / left.sum()
                left[token] = 0
        return uniforms

    def accept(self, probability: float) -> bool:
        raise AssertionError("drafting accepts nothing")

    def categorical(self, weights: Tensor) -> int:
        raise AssertionError("draws come from uniforms")


def grow(policy: TreePolicy, law: Law, source: InOrder | None = None) -> tuple[DraftTree, int]:
    """(tree, draft steps)."""
    state, paths, steps = policy.begin(0), [(0,)], 0
    while True:
        steps += 1
        d = torch.stack([law.d(path) for path in paths])
        best = torch.topk(d, min(policy.width, law.vocab))
        if source is not None:
            source.paths = paths
        frontier = policy.grow(
            state,
            DraftHeadOutput(
                best.values.log(),
                best.indices,
                law.vocab,
                d.log(),
                torch.arange(law.vocab),
                shared=False,
            ),
        )
        if frontier is None:
            return policy.finish(state), steps
        paths = [
            (*paths[s], t)
            for s, t in zip(frontier.source.tolist(), frontier.tokens.tolist(), strict=True)
        ]


def paths_of(tree: DraftTree) -> list[Path]:
    paths: list[Path] = [(0,)]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


def algorithm_1(law: Law, source: InOrder, size: int) -> list[Path]:
    """The paper's heap, one drafter pass a node."""
    count = itertools.count()
    heap = [(-1.0, next(count), (0,), law.d((0,)), 0)]
    nodes = []
    while len(nodes) < size and heap:
        negative, _, path, rest, drawn = heapq.heappop(heap)
        token = source.order(path)[drawn]
        child = (*path, token)
        nodes.append(child)
        here = float(rest[token])
        heapq.heappush(heap, (negative * here, next(count), child, law.d(child), 0))
        if drawn + 1 < law.vocab:
            rest = rest.clone()
            rest[token] = 0
            left = float(rest.sum())
            heapq.heappush(heap, (negative * (1 - here), next(count), path, rest / left, drawn + 1))
    return nodes


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_layerwise_with_a_cap_is_algorithm_1(size: int) -> None:
    """Given the same draws, no threshold and enough width and depth, both grow the same tree."""
    for seed in range(25):
        law = Law(seed, vocab=4)
        source = InOrder(law, shuffle=seed)
        config = TreeConfig("dyspec", size=size, depth=12, width=64, threshold=1e-12)
        policy = create_tree(config, SAMPLING, source=source)
        tree, _ = grow(policy, law, source)
        assert sorted(paths_of(tree)[1:]) == sorted(algorithm_1(law, source, size))


def sibling_closed(
    law: Law, source: InOrder, size: int, vocab: int
) -> Iterator[list[tuple[Path, int]]]:
    """Every tree of ``size`` slots in which a slot's earlier siblings and its parent are
    present."""

    def extend(chosen: list[tuple[Path, int]], open_slots: list[tuple[Path, int]]):
        if len(chosen) == size:
            yield chosen
            return
        for i, (path, drawn) in enumerate(open_slots):
            child = (*path, source.order(path)[drawn])
            more = [*open_slots[i + 1 :], (child, 0)]
            if drawn + 1 < vocab:
                more.append((path, drawn + 1))
            yield from extend([*chosen, (path, drawn)], more)

    yield from extend([], [((0,), 0)])


def slot_value(law: Law, source: InOrder, path: Path, drawn: int) -> float:
    """Probability that verification reaches the slot if acceptance equals the draft's
    probability."""
    value = 1.0
    for i in range(1, len(path)):
        value *= float(law.d(path[:i])[path[i]])
    d = law.d(path)
    return value * (1 - sum(float(d[t]) for t in source.order(path)[:drawn]))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_algorithm_1_is_optimal_among_all_trees(size: int) -> None:
    """Appendix D by brute force: no other tree of that size has a larger sum of slot values."""
    for seed in range(6):
        law = Law(seed, vocab=3)
        source = InOrder(law, shuffle=seed)
        policy = create_tree(
            TreeConfig("dyspec", size=size, depth=size, width=64, threshold=1e-12),
            SAMPLING,
            source=source,
        )
        tree, _ = grow(policy, law, source)
        total = 0.0
        for path in paths_of(tree)[1:]:
            drawn = source.order(path[:-1]).index(path[-1])
            total += slot_value(law, source, path[:-1], drawn)
        best = max(
            math.fsum(slot_value(law, source, *slot) for slot in slots)
            for slots in sibling_closed(law, source, size, 3)
        )
        assert total == pytest.approx(best, abs=1e-12)


def all_trees(law: Law, size: int) -> Iterator[list[Path]]:
    """Every connected set of ``size`` nodes."""

    def extend(chosen: list[Path], border: list[Path]):
        if len(chosen) == size:
            yield chosen
            return
        for i, node in enumerate(border):
            below = [(*node, t) for t in range(law.vocab)]
            yield from extend([*chosen, node], border[i + 1 :] + below)

    yield from extend([], [(0, t) for t in range(law.vocab)])


def path_probability(law: Law, path: Path) -> float:
    return math.prod(float(law.d(path[:i])[path[i]]) for i in range(1, len(path)))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_greedy_target_keeps_the_largest_expected_length(size: int) -> None:
    """Deterministic form: the sum of path probabilities is the largest of any tree of that size."""
    for seed in range(8):
        law = Law(seed, vocab=3)
        config = TreeConfig("dyspec", size=size, depth=size, width=64, threshold=1e-12)
        policy = create_tree(config, SamplingConfig(0.0))
        tree, _ = grow(policy, law)
        total = math.fsum(path_probability(law, path) for path in paths_of(tree)[1:])
        best = max(
            math.fsum(path_probability(law, path) for path in nodes)
            for nodes in all_trees(law, size)
        )
        assert total == pytest.approx(best, abs=1e-12)


def algorithm_2(law: Law, source: InOrder, threshold: float, depth: int) -> list[Path]:
    """The paper's layer-wise form, with its loop test as meant (while v >= t)."""
    leaves, nodes = [((0,), 1.0)], []
    for _ in range(depth):
        below = []
        for path, v in leaves:
            d, drawn = law.d(path), 0
            while v >= threshold and drawn < law.vocab:
                token = source.order(path)[drawn]
                here = float(d[token])
                nodes.append((*path, token))
                below.append(((*path, token), v * here))
                v *= 1 - here
                d = d.clone()
                d[token] = 0
                d = d / d.sum()
                drawn += 1
        leaves = below
    return nodes


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.05])
def test_threshold_form_is_algorithm_2(threshold: float) -> None:
    for seed in range(25):
        law = Law(seed, vocab=5)
        source = InOrder(law, shuffle=seed)
        config = TreeConfig("dyspec", size=1024, depth=20, width=64, threshold=threshold)
        policy = create_tree(config, SAMPLING, source=source)
        tree, _ = grow(policy, law, source)
        assert sorted(paths_of(tree)[1:]) == sorted(algorithm_2(law, source, threshold, 20))


def test_depth_follows_the_text() -> None:
    """A sure draft goes deep, an unsure one is cut early; the default threshold is 2 / size."""
    config = TreeConfig("dyspec", size=8, depth=8, width=4)
    for sampling in (SAMPLING, SamplingConfig(0.0)):
        sure = grow(create_tree(config, sampling), Law(0, vocab=6, spread=100.0))
        unsure = grow(create_tree(config, sampling), Law(0, vocab=6, spread=0.1))
        assert sure[1] == 8
        assert unsure[1] <= 3
        assert create_tree(config, sampling).threshold == 2 / 8
        assert create_tree(replace(config, size=1), sampling).threshold == 1


@pytest.mark.parametrize("sampling", [SAMPLING, SamplingConfig(0.0)])
def test_limits_are_kept(sampling: SamplingConfig) -> None:
    for seed in range(20):
        config = TreeConfig("dyspec", size=7, depth=3, width=2, threshold=1e-9)
        policy = create_tree(config, sampling)
        tree, steps = grow(policy, Law(seed, vocab=6))
        paths = paths_of(tree)
        assert len(paths) - 1 <= 7
        assert max(map(len, paths)) - 1 <= 3
        assert steps <= 3
        children = [paths[p] for p in tree.parents.tolist()[1:]]
        assert max(children.count(path) for path in children) <= 2


def test_mass_outside_the_shortlist_lowers_values_only() -> None:
    """Half the mass estimated outside: shallower trees, the same recorded q."""
    law = Law(1, vocab=6, spread=6.0)
    config = TreeConfig("dyspec", size=16, depth=8, width=4)

    def run(log_mass: float) -> tuple[DraftTree, int]:
        policy = create_tree(config, SAMPLING)
        state, paths, steps = policy.begin(0), [(0,)], 0
        while True:
            steps += 1
            d = torch.stack([law.d(path) for path in paths])
            best = torch.topk(d, 4)
            output = DraftHeadOutput(
                best.values.log() + log_mass, best.indices, 6, d.log(), torch.arange(6)
            )
            frontier = policy.grow(state, output)
            if frontier is None:
                return policy.finish(state), steps
            paths = [
                (*paths[s], t)
                for s, t in zip(frontier.source.tolist(), frontier.tokens.tolist(), strict=True)
            ]

    whole, steps = run(0.0)
    halved, fewer = run(math.log(0.5))
    assert fewer < steps
    torch.testing.assert_close(halved.q.nodes[0].q, whole.q.nodes[0].q)
    torch.testing.assert_close(whole.q.nodes[0].q, law.d((0,)))


def test_records_hold_the_draws_in_order() -> None:
    law = Law(2, vocab=6)
    source = InOrder(law, shuffle=9)
    policy = create_tree(TreeConfig("dyspec", size=9, depth=4, width=4), SAMPLING, source)
    tree, _ = grow(policy, law, source)
    paths = paths_of(tree)
    assert not tree.q.replacement
    recorded = set()
    for row, draft in tree.q.nodes.items():
        order = source.order(paths[row])
        for i, draw in enumerate(draft.draws):
            assert int(draft.ids[draw.column]) == order[i] == int(tree.tokens[draw.row])
            assert int(tree.parents[draw.row]) == row
            recorded.add(draw.row)
    assert recorded == set(range(1, len(paths)))


def test_the_drafts_temperature_can_be_its_own() -> None:
    law = Law(3, vocab=6)
    config = TreeConfig("dyspec", size=4, depth=1, width=2)
    policy = create_tree(replace(config, draft_temperature=0.6), SAMPLING)
    tree, _ = grow(policy, law)
    torch.testing.assert_close(tree.q.nodes[0].q, torch.softmax(law.d((0,)).log() / 0.6, 0))


def test_a_sampling_policy_without_the_distribution() -> None:
    policy = create_tree(TreeConfig("dyspec", size=4, depth=2, width=2), SAMPLING)
    assert policy.needs_distribution
    best = DraftHeadOutput(torch.tensor([[-0.5, -1.0]]), torch.tensor([[1, 2]]), 9)
    with pytest.raises(DynaSpecError, match="whole distribution"):
        policy.grow(policy.begin(0), best)
    for partly in (
        DraftHeadOutput(best.log_q, best.ids, 9, best.log_q, None),
        DraftHeadOutput(best.log_q, best.ids, 9, None, best.ids[0]),
    ):
        with pytest.raises(DynaSpecError, match="whole distribution"):
            policy.grow(policy.begin(0), partly)


@pytest.mark.parametrize("sampling", [SAMPLING, SamplingConfig(0.0)])
@pytest.mark.parametrize("size", [5, 12])
def test_estimates_are_the_probabilities_of_the_kept_paths(
    sampling: SamplingConfig, size: int
) -> None:
    """Largest first, as many as nodes; and the records of the rows that have children."""
    law = torch.log_softmax(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), -1)
    d = law[0].exp()
    policy = create_tree(
        TreeConfig("dyspec", size=size, depth=2, width=3, threshold=1e-6, draft_temperature=1.0),
        sampling,
    )
    state, rows = policy.begin(9), 1
    while rows:
        best = law.expand(rows, 4).topk(3)
        output = DraftHeadOutput(
            best.values, best.indices, 4, law.expand(rows, 4), torch.arange(4), False
        )
        frontier = policy.grow(state, output)
        rows = 0 if frontier is None else frontier.tokens.numel()
    tree = policy.finish(state)
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    paths = [1.0]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append(paths[parent] * float(d[token]))
    assert tree.values == pytest.approx(sorted(paths[1:], reverse=True), rel=1e-5)
    assert len(tree.values) == tree.num_nodes
    if sampling.greedy:
        return
    inner = {parent for parent in parents if parent >= 0}
    assert set(tree.q.nodes) == inner
    assert len(tree.q.nodes) == len(inner)
    for row in {-1, *range(tree.num_nodes + 1)} - inner:
        with pytest.raises(KeyError):
            tree.q.nodes[row]
