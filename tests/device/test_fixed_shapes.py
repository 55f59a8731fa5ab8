"""A round in fixed shapes could be captured: the same operations whatever the data, none that
waits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.candidates import Candidates
from dynaspec_cli.device.draw import Uniforms
from dynaspec_cli.device.growth import Growth, growth_of

from .capture import NotCapturableError, recorded
from .worlds import policy_of

POLICIES = ("chain", "eagle2", "ddd", "dyspec", "sequoia", "specinfer")
SIZE = 12


def growth(policy: str, temperature: float) -> Growth:
    config = TreeConfig(policy, 10, depth=4, width=3)
    made = growth_of(policy_of(config, SamplingConfig(temperature), 0)[0], True)
    assert made is not None
    return made


def inputs(made: Growth, seed: int) -> list[Tensor]:
    """Root, uniforms, then a level's log-probabilities after the other."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randint(0, 9, (1,), generator=g)
    uniforms = torch.rand(max(made.most_uniforms(), 1), generator=g, dtype=torch.float64)
    heat = torch.rand(1, generator=g) * 6  # trees of every size
    levels = [torch.randn(made.rows(i), SIZE, generator=g) * heat for i in range(made.depth)]
    return [root, uniforms, *levels]


def round_of(made: Growth) -> Callable[..., list[Tensor]]:
    def run(root: Tensor, uniforms: Tensor, *levels: Tensor) -> list[Tensor]:
        state = made.begin(root, Uniforms(uniforms, root[0] * 0))
        for level, scores in enumerate(levels):
            log_probs = scores.log_softmax(1)
            log_q, ids = log_probs.topk(made.width)
            candidates = Candidates(log_q, ids, log_probs, torch.arange(SIZE))
            state, _ = made.grow(state, level, candidates)
        packed, rows, draws = made.finish(state)
        drawn = [] if draws is None else [draws.row, draws.column, draws.law, draws.ids, draws.q]
        return [packed, rows, *drawn]

    return run


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_round_is_the_same_operations(policy: str, temperature: float) -> None:
    made = growth(policy, temperature)
    run = round_of(made)
    run(*inputs(made, 0))  # tables are made once
    rounds = [recorded(functools.partial(run, *inputs(made, i))) for i in range(5)]
    assert all(each == rounds[0] for each in rounds)
    packed = [run(*inputs(made, i))[0] for i in range(5)]
    assert len({tuple(p.tolist()) for p in packed}) == 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_rounds_are_traced_without_values(policy: str, temperature: float) -> None:
    made = growth(policy, temperature)
    run, given = round_of(made), inputs(made, 1)
    want = run(*given)
    graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
    for got, wanted in zip(graph(*given), want, strict=True):
        assert torch.equal(got, wanted)
    other = inputs(made, 2)
    for got, wanted in zip(graph(*other), run(*other), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "planted",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.tensor([2.0]),
        lambda x: x[x.argmax()],
        lambda x: x.unique(),
        lambda x: x.new_tensor([1.0]),
    ],
)
def test_what_waits_is_noticed(planted: Callable[[Tensor], object]) -> None:
    with pytest.raises(NotCapturableError):
        recorded(lambda: planted(torch.randn(5)))


def test_shapes_that_follow_data_are_noticed() -> None:
    data = [torch.zeros(4), torch.ones(4)]
    counts = [int(x.sum()) for x in data]
    seen = [recorded(lambda x=x, n=n: x[:n] * 2) for x, n in zip(data, counts, strict=True)]
    assert seen[0] != seen[1]


def test_a_value_read_back_cannot_be_traced() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()
