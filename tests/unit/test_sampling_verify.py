"""Walks of the verification: greedy, laziness, records that do not fit, rounding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling import verify as verification
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.sampling.verify import (
    Draw,
    NodeDraft,
    SampledDrafts,
    pass_and_verify,
    verify,
    verify_greedy,
    verify_sampled,
)


def tree(tokens: list[int], parents: list[int], q: SampledDrafts | None = None) -> DraftTree:
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), q)


class Output:
    """A target's output over given logits that notes what it was asked for."""

    rows_ranked: Tensor | None = None

    def __init__(self, logits: Tensor, cheap_rows: int | None = None) -> None:
        self.features = torch.zeros(logits.shape[0], 1)
        self.table = logits
        self.cheap_rows = cheap_rows
        self.asked: list[int] = []

    def logits(self, rows: Tensor | None = None) -> Tensor:
        assert rows is not None
        self.asked += rows.tolist()
        return self.table[rows]

    def logits_at(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        return self.table[rows, token_ids]

    def argmax(self, rows: Tensor | None = None) -> Tensor:
        self.asked += range(self.table.shape[0]) if rows is None else rows.tolist()
        return (self.table if rows is None else self.table[rows]).argmax(-1)

    def leaders(self, k: int, rows: Tensor | None = None) -> Tensor:
        raise AssertionError("verification needs no leaders")


#        0:7 ─┬─ 1:3 ─┬─ 3:1
#             │       └─ 4:2 ── 6:3
#             └─ 2:4 ─── 5:2
TOKENS, PARENTS = [7, 3, 4, 1, 2, 2, 3], [-1, 0, 0, 1, 1, 2, 4]


@pytest.mark.parametrize(
    ("choices", "path", "bonus"),
    [
        ([3, 2, 0, 0, 3, 0, 5], [0, 1, 4, 6], 5),
        ([3, 2, 0, 0, 1, 0, 5], [0, 1, 4], 1),
        ([3, 1, 0, 6, 3, 0, 5], [0, 1, 3], 6),
        ([3, 0, 0, 6, 3, 0, 5], [0, 1], 0),
        ([4, 0, 2, 6, 3, 1, 5], [0, 2, 5], 1),
        ([2, 0, 2, 6, 3, 1, 5], [0], 2),
    ],
)
def test_greedy_follows_the_argmax(choices: list[int], path: list[int], bonus: int) -> None:
    """Against hand-walked paths; no logits are asked for."""
    output = Output(torch.nn.functional.one_hot(torch.tensor(choices), 8).float())
    for verdict in (
        verify_greedy(tree(TOKENS, PARENTS), output),
        verify(tree(TOKENS, PARENTS), output, SamplingConfig(0.0), GeneratorSource(0)),
    ):
        assert verdict.path.tolist() == path
        assert verdict.path.dtype == torch.int64
        assert verdict.bonus == bonus
    assert output.asked == [*range(7), *range(7)]


@pytest.mark.parametrize("cheap", range(1, 7))
@pytest.mark.parametrize("seed", range(30))
def test_reading_in_parts_changes_nothing(seed: int, cheap: int) -> None:
    """The same walk as with all rows at once, greedy and sampled, no row read twice; with the best
    children's path within ``cheap`` rows a greedy walk reads once."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(7, 8, generator=generator)
    for config in (SamplingConfig(0.0), SamplingConfig(1.0)):
        whole, part = Output(logits), Output(logits, cheap_rows=cheap)
        wanted = verify(tree(TOKENS, PARENTS), whole, config, GeneratorSource(seed))
        got = verify(tree(TOKENS, PARENTS), part, config, GeneratorSource(seed))
        assert got.path.tolist() == wanted.path.tolist()
        assert got.bonus == wanted.bonus
        assert len(part.asked) == len(set(part.asked))
        if config.greedy and cheap >= 4:
            assert len(part.asked) <= cheap


@pytest.mark.parametrize("seed", range(20))
def test_greedy_is_sampling_at_temperature_zero(seed: int) -> None:
    output = Output(torch.randn(7, 8, generator=torch.Generator().manual_seed(seed)))
    greedy = verify_greedy(tree(TOKENS, PARENTS), output)
    one_hot = torch.nn.functional.one_hot(output.argmax(), 8).float()
    sampled = verify_sampled(tree(TOKENS, PARENTS), lambda row: one_hot[row], GeneratorSource(seed))
    assert sampled.path.tolist() == greedy.path.tolist()
    assert sampled.bonus == greedy.bonus


class Deciding:
    """A target that verifies trees itself, or (``willing`` False) leaves them to the host."""

    def __init__(self, willing: bool = True) -> None:
        self.willing = willing
        self.uniforms: list[Tensor | None] = []
        self.output = Output(torch.eye(8)[:7])

    def decide(self, state: object, tree: DraftTree, sampling: SamplingConfig, uniforms):
        self.uniforms.append(uniforms)
        if not self.willing:
            return None
        used = 0 if uniforms is None else 3
        decided = {"path": torch.tensor([0, 2]), "bonus": 6, "used": used}
        return SimpleNamespace(tree=tree, output="theirs", **decided)

    def verify(self, state: object, tree: DraftTree) -> Output:
        return self.output


class Foreign:
    """Random numbers that are no generator's: only the host can use them."""

    def accept(self, probability: float) -> bool:
        return False

    def categorical(self, weights: Tensor) -> int:
        return int(weights.argmax())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_target_that_verifies_a_tree_itself(temperature: float) -> None:
    """It gets the uniforms that the source yields next, one a node and two more, and as many as it
    used are skipped."""
    drafted, sampling = tree(TOKENS, PARENTS), SamplingConfig(temperature)
    target, source, plain = Deciding(), GeneratorSource(3), GeneratorSource(3)
    *_, output, verdict = pass_and_verify(target, None, drafted, sampling, source)
    assert (output, verdict.path.tolist(), verdict.bonus) == ("theirs", [0, 2], 6)
    coming = [plain.uniform() for _ in range(8)]
    if temperature:
        assert target.uniforms[0].tolist() == coming
        assert source.uniform() == coming[3]
    else:
        assert target.uniforms == [None]
        assert source.uniform() == coming[0]


def test_trees_that_the_target_leaves_to_the_host() -> None:
    """Refused by it; by random numbers that it cannot have; by a target that never does."""
    drafted = tree(TOKENS, PARENTS)
    sampled, greedy = SamplingConfig(1.0), SamplingConfig(0.0)
    refusing, foreign, plain = Deciding(willing=False), Deciding(), Deciding()
    never = SimpleNamespace(verify=plain.verify)
    cases = (
        (refusing, greedy, GeneratorSource(3), 1),
        (refusing, sampled, GeneratorSource(3), 1),
        (foreign, sampled, Foreign(), 0),
        (never, greedy, GeneratorSource(3), 0),
        (never, sampled, GeneratorSource(3), 0),
    )
    for target, sampling, source, asked in cases:
        before = len(getattr(target, "uniforms", ()))
        *_, output, verdict = pass_and_verify(target, None, drafted, sampling, source)
        assert len(getattr(target, "uniforms", ())) == before + asked
        assert isinstance(output, Output)
        other = Foreign() if isinstance(source, Foreign) else GeneratorSource(3)
        wanted = verify(drafted, output, sampling, other)
        assert torch.equal(verdict.path, wanted.path)
        assert verdict.bonus == wanted.bonus
    *_, output, _ = pass_and_verify(foreign, None, drafted, greedy, Foreign())
    assert (output, foreign.uniforms) == ("theirs", [None])  # greedy needs none


def test_only_visited_rows_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax is taken of the accepted path's rows, each once; logits are computed in one
    go."""
    output = Output(torch.randn(7, 8, generator=torch.Generator().manual_seed(0)))
    formed: list[int] = []

    def watched(logits: Tensor, config: SamplingConfig) -> Tensor:
        assert logits.shape == (1, 8)
        formed.extend((output.table == logits).all(1).nonzero().squeeze(1).tolist())
        return probabilities(logits, config)

    monkeypatch.setattr(verification, "probabilities", watched)
    lengths = set()
    for seed in range(200):
        output.asked.clear()
        formed.clear()
        verdict = verify(tree(TOKENS, PARENTS), output, SamplingConfig(1.0), GeneratorSource(seed))
        assert formed == verdict.path.tolist()
        assert output.asked == list(range(7))
        lengths.add(len(formed))
    assert lengths >= {1, 2, 3}


def test_logits_of_a_large_tree_come_in_parts() -> None:
    """A certain chain of 100: never more than 32 rows at a time, no row twice, the root's part
    first."""
    rows = 101
    output = Output(torch.nn.functional.one_hot(torch.arange(1, rows + 1), rows + 1) * 100.0)
    chain = tree(list(range(rows)), list(range(-1, rows - 1)))
    sizes: list[int] = []
    original = output.logits
    output.logits = lambda wanted: (sizes.append(len(wanted)), original(wanted))[1]
    verdict = verify(chain, output, SamplingConfig(1.0), GeneratorSource(0))
    assert verdict.path.tolist() == list(range(rows))
    assert verdict.bonus == rows
    assert sizes == [32, 32, 32, 5]
    assert output.asked == list(range(rows))


def test_the_root_alone_is_plain_decoding() -> None:
    output = Output(torch.tensor([[0.0, 50.0, 0.0]]))
    verdict = verify(tree([5], [-1]), output, SamplingConfig(1.0), GeneratorSource(0))
    assert verdict.path.tolist() == [0]
    assert verdict.bonus == 1


def test_nan_in_a_visited_row() -> None:
    output = Output(torch.full((7, 8), float("nan")))
    with pytest.raises(DynaSpecError, match="NaN"):
        verify(tree(TOKENS, PARENTS), output, SamplingConfig(1.0), GeneratorSource(0))


def record(
    q: list[float],
    draws: list[tuple[int, int]],
    replacement: bool = False,
    points: tuple[int, ...] = (),
) -> SampledDrafts:
    """A record for the root's children over tokens 3, 4, 5."""
    pairs = tuple(Draw(*pair) for pair in draws)
    node = NodeDraft(torch.tensor([3, 4, 5]), torch.tensor(q), pairs, points)
    return SampledDrafts({0: node}, replacement)


FLAT = torch.full((8,), 0.125)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (SampledDrafts({}, False), "not its children"),
        (record([0.5, 0.5, 0.0], [(0, 1)]), "not its children"),
        (record([0.5, 0.5, 0.0], [(0, 1), (1, 2), (2, 9)]), "not its children"),
        (record([0.0, 0.5, 0.5], [(0, 1), (1, 2)]), "cannot draw"),
        (record([0.4, 0.3, 0.3], [(1, 1), (0, 2)]), "cannot draw"),
        (record([0.4, 0.3, 0.3], [(0, 1)], points=(3,)), "not its children"),
        (record([0.4, 0.3, 0.3], [], points=(1,)), "not its children"),
        ("a string", "expected SampledDrafts or None"),
    ],
)
def test_records_that_do_not_fit_the_tree(q: object, message: str) -> None:
    drafted = DraftTree(torch.tensor([7, 3, 4]), torch.tensor([-1, 0, 0]), q)
    with pytest.raises(DynaSpecError, match=message):
        verify_sampled(drafted, lambda row: FLAT, GeneratorSource(0))


class Never(GeneratorSource):
    """Rejects whatever can be rejected."""

    def __init__(self) -> None:
        super().__init__(0)

    def accept(self, probability: float) -> bool:
        return False


def test_points_that_hold_all_of_p_are_accepted_in_spite_of_rounding() -> None:
    """0.1 + 0.2 + 0.7 leaves a residual of rounding only, from which nothing can be drawn."""
    p = torch.tensor([0.0, 0.1, 0.2, 0.7, 0.0], dtype=torch.float64)
    drafted = tree([9, 1, 4, 2, 3], [-1, 0, 0, 0, 0])
    probabilities = {0: p, 4: torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)}
    verdict = verify_sampled(drafted, lambda row: probabilities[row], Never())
    assert verdict.path.tolist() == [0, 4]
    assert verdict.bonus == 0


def test_a_draw_from_p_itself_is_accepted_in_spite_of_rounding() -> None:
    """q equal to p: no residual is left by a rejection, which only rounding can cause."""
    p = torch.zeros(8)
    p[3:6] = torch.tensor([0.2, 0.3, 0.5])
    drafted = tree([7, 4], [-1, 0], record([0.2, 0.3, 0.5], [(1, 1)]))
    verdict = verify_sampled(drafted, lambda row: p, Never())
    assert verdict.path.tolist()[:2] == [0, 1]


def test_duplicate_points_are_tried_once() -> None:
    """Two equal siblings: the second has no mass left, and the residual loses it once."""
    p = torch.tensor([0.5, 0.5])
    counts = [0, 0]
    for seed in range(2000):
        verdict = verify_sampled(tree([0, 1, 1], [-1, 0, 0]), lambda row: p, GeneratorSource(seed))
        first = 1 if verdict.path.numel() > 1 else verdict.bonus
        counts[first] += 1
        assert 2 not in verdict.path.tolist()
    assert abs(counts[1] - 1000) < 150


def test_rounds_of_the_residual_worked_by_hand() -> None:
    """p = (.1 .6 .3) over tokens 3, 4, 5 and q = (.5 .3 .2), drawn 3 then 4 then 5 without
    replacement.

    Token 3: accepted with .1 / .5. R = norm(0, .3, .1) = (0, .75, .25), D = (0, .6, .4); token 4:
    .75 / .6, certain.
    """
    p = torch.zeros(8, dtype=torch.float64)
    p[3:6] = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    asked: list[float] = []

    class Recorder(Never):
        def accept(self, probability: float) -> bool:
            asked.append(probability)
            return False

    q = record([0.5, 0.3, 0.2], [(0, 1), (1, 2), (2, 3)])
    with pytest.raises(DynaSpecError, match="not its children"):
        verify_sampled(tree([7, 3, 4], [-1, 0, 0], q), lambda row: p, Recorder())
    verdict = verify_sampled(tree([7, 3, 4, 5], [-1, 0, 0, 0], q), lambda row: p, Recorder())
    # After token 4 is (impossibly) rejected: R = norm(0, .15, 0), D = (0, 0, 1).
    assert asked == pytest.approx([0.2, 1.25, 0.0], abs=1e-6)
    assert verdict.path.tolist() == [0]
    assert verdict.bonus == 4


def test_traversal_asks_the_children_before_the_node() -> None:
    """The target wants token 3 and below it token 4; both were drafted, with q = 0.5: whatever the
    coins say, the whole path is passed."""
    p = torch.eye(8)[[3, 4, 6]]
    ids, q = torch.tensor([3, 4]), torch.tensor([0.5, 0.5])
    nodes = {0: NodeDraft(ids, q, (Draw(0, 1),)), 1: NodeDraft(ids, q, (Draw(1, 2),))}
    for seed in range(5):
        drafted = tree([7, 3, 4], [-1, 0, 1], SampledDrafts(nodes, False, traversal=True))
        verdict = verify_sampled(drafted, lambda row: p[row], GeneratorSource(seed))
        assert verdict.path.tolist() == [0, 1, 2]
        assert verdict.bonus == 6


def test_with_replacement_q_stays() -> None:
    """The same p and q, token 3 drawn twice, then 4: R(3) is 0 after its first rejection, D never
    changes."""
    p = torch.zeros(8, dtype=torch.float64)
    p[3:6] = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    asked: list[float] = []

    class Recorder(Never):
        def accept(self, probability: float) -> bool:
            asked.append(probability)
            return False

    q = record([0.5, 0.3, 0.2], [(0, 1), (0, 1), (1, 2)], replacement=True)
    verify_sampled(tree([7, 3, 4], [-1, 0, 0], q), lambda row: p, Recorder())
    # R = norm(0, .3, .1) = (0, .75, .25); again: norm(0, .45, .05) = (0, .9, .1).
    assert asked == pytest.approx([0.2, 0.0, 3.0], abs=1e-6)


def test_points_before_draws_worked_by_hand() -> None:
    """p = (.1 .6 .2) over tokens 3, 4, 5 and .1 on 6; points 4 and 6, then draws 4 and 5 of q = (.5
    .3 .2). Token 4: .6; token 6: .1 / .4; R = norm(.1, 0, .2). Token 4 drawn: 0 of .3; R =
    norm(max(R - D, 0)) = (0, 0, 1), D = norm(.5, 0, .2); token 5: 1 / (2/7)."""
    p = torch.zeros(8, dtype=torch.float64)
    p[3:7] = torch.tensor([0.1, 0.6, 0.2, 0.1], dtype=torch.float64)
    asked: list[float] = []

    class Recorder(Never):
        def accept(self, probability: float) -> bool:
            asked.append(probability)
            return False

    q = record([0.5, 0.3, 0.2], [(1, 1), (2, 3)], points=(1, 2))
    verdict = verify_sampled(
        tree([7, 4, 6, 5], [-1, 0, 0, 0], q), lambda row: p if row == 0 else FLAT, Recorder()
    )
    assert asked == pytest.approx([0.6, 0.25, 0.0, 3.5], abs=1e-6)
    # What is left after token 5 is (impossibly) rejected is rounding: R = D, so it is accepted.
    assert verdict.path.tolist() == [0] or verdict.path.tolist()[1] == 3


def test_points_alone_need_no_q() -> None:
    p = torch.zeros(8, dtype=torch.float64)
    p[3:5] = 0.5
    nodes = {0: NodeDraft(torch.empty(0, dtype=torch.int64), torch.empty(0), (), (1,))}
    drafted = tree([7, 4], [-1, 0], SampledDrafts(nodes, False))
    verdict = verify_sampled(drafted, lambda row: p, Never())
    assert verdict.path.tolist() == [0]
    assert verdict.bonus == 3
