"""What CUDA graphs of the static target hold, and what a step costs outside of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend import DEVICE, CapturedError, pretend_cuda
from pretend_ops import device_ops
from static_step import captured_steps

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.sampling.verify import pass_and_verify
from dynaspec_cli.target.native_spec import native_spec, read_config
from dynaspec_cli.target.static import step as static_step
from dynaspec_cli.target.static.step import Mode
from dynaspec_cli.target.static.target import load_static
from dynaspec_cli.target.weights import WeightFiles

CONFIGS = {
    Mode.GREEDY: SamplingConfig(),
    Mode.SAMPLE: SamplingConfig(temperature=1.0),
    Mode.FILTER: SamplingConfig(temperature=0.7, top_k=9, top_p=0.9, min_p=0.02),
}


@pytest.fixture
def guard():
    with pretend_cuda() as active, device_ops():
        yield active


@pytest.fixture
def target(tiny_model_dir: Any, guard: Any) -> Any:
    spec = native_spec(read_config(tiny_model_dir))
    assert not isinstance(spec, str)
    files = WeightFiles(tiny_model_dir)
    return load_static(files, "tiny", spec, torch.bfloat16, DEVICE, "known")


def tree(nodes: int, seed: int) -> DraftTree:
    g = torch.Generator().manual_seed(seed)
    parents = [-1] + [
        int(torch.randint(max(0, i - 4), i, (1,), generator=g)) for i in range(1, nodes + 1)
    ]
    return DraftTree(torch.arange(nodes + 1) + 2, torch.tensor(parents))


def run(target: Any, state: Any, given: DraftTree, config: SamplingConfig) -> None:
    _, _, verdict = pass_and_verify(target, state, given, config, GeneratorSource(1))
    target.commit(state, verdict.path)


@pytest.mark.parametrize("mode", CONFIGS)
def test_operations_follow_from_the_form_alone(target: Any, guard: Any, mode: Mode) -> None:
    """Trees of different shapes and sizes, at different lengths."""
    with captured_steps(guard) as met:
        state = target.begin(100, (1,))
        target.prefill(state, torch.arange(9) + 4)
        guard.hot = True
        for nodes in (0, 1, 15, 7, 31, 20, 63, 16):
            run(target, state, tree(nodes, nodes), CONFIGS[mode])
        assert {form.rows for form in met} == {16, 32, 64}
        assert {form.mode for form in met} == {mode}


@pytest.mark.parametrize("mode", CONFIGS)
def test_a_step_waits_once(target: Any, guard: Any, mode: Mode) -> None:
    with captured_steps(guard):
        state = target.begin(100)
        target.prefill(state, torch.arange(9) + 4)
        guard.hot = True
        for nodes in (0, 31):
            run(target, state, tree(nodes, 3), CONFIGS[mode])
            guard.counts.clear()
            run(target, state, tree(nodes, 3), CONFIGS[mode])
            assert guard.counts["waits"] == 1
            assert guard.counts["launches"] <= 6
            assert guard.counts["captured"] > 50


FAULTS = {
    "a value read back": lambda rows: rows.depth.sum().item(),
    "a truth": lambda rows: bool(rows.real[0]),
    "a copy to the host": lambda rows: rows.depth.cpu(),
    "a shape that depends on data": lambda rows: rows.real.nonzero(),
    "a mask as an index": lambda rows: rows.depth[rows.real],
    "an index of the host": lambda rows: rows.depth[torch.tensor([1, 0])],
    "a tensor of the host": lambda rows: rows.depth.copy_(torch.zeros(rows.depth.shape)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(target: Any, guard: Any, monkeypatch: Any, fault: str) -> None:
    made = static_step.rows_of_tree

    def planted(*args: Any) -> Any:
        rows = made(*args)
        FAULTS[fault](rows)
        return rows

    state = target.begin(100)
    target.prefill(state, torch.arange(9) + 4)
    with captured_steps(guard):
        run(target, state, tree(5, 1), CONFIGS[Mode.GREEDY])
        monkeypatch.setattr(static_step, "rows_of_tree", planted)
        with pytest.raises(CapturedError):
            run(target, state, tree(5, 1), CONFIGS[Mode.GREEDY])


def test_operations_that_depend_on_the_tree_are_found(
    target: Any, guard: Any, monkeypatch: Any
) -> None:
    """A branch of the host's on what it knows of a tree would be frozen into the graph."""
    made, calls = static_step.rows_of_tree, []

    def planted(*args: Any) -> Any:
        calls.append(args)
        rows = made(*args)
        return rows if len(calls) == 1 else made(*args)

    monkeypatch.setattr(static_step, "rows_of_tree", planted)
    state = target.begin(100)
    target.prefill(state, torch.arange(9) + 4)
    with captured_steps(guard):
        run(target, state, tree(5, 1), CONFIGS[Mode.GREEDY])
        with pytest.raises(CapturedError, match="operations depend on data"):
            run(target, state, tree(5, 1), CONFIGS[Mode.GREEDY])
