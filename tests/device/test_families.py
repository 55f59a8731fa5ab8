"""The whole engine of a GPU, every family, tree and shortlist: rounds drafted at once and verified
where they lie, on the pretended device against the native target on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import DEVICE, pretend_cuda
from pretend_ops import device_ops
from static_step import captured_rounds, captured_steps
from tiny_families import FAMILIES, save_family

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.target.load import load_target, load_transformers
from dynaspec_cli.target.native_spec import native_spec, read_config
from dynaspec_cli.target.static.target import load_static
from dynaspec_cli.target.weights import WeightFiles
from dynaspec_cli.training.initialise import drafter_config, from_target

from .parts import SAMPLING, Parts, drafting, noting, run
from .shortlists import SHORTLISTS, a_shortlist

STEPS = 4
TREES = ("chain", "eagle2", "ddd", "dyspec", "sequoia", "specinfer")
PROMPT = torch.tensor([5, 9, 60, 31, 77, 5, 9])


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By family: the native target on the CPU and the static one on the pretended GPU, each with a
    drafter begun from it."""
    made: dict[str, tuple[Parts, Parts]] = {}

    def make(family: str) -> tuple[Parts, Parts]:
        if family in made:
            return made[family]
        folder, cpu = Path(tmp_path_factory.mktemp(family)), torch.device("cpu")
        save_family(family, folder)
        reader: Any = load_transformers(folder, family, torch.float32, cpu)
        torch.manual_seed(0)
        module = from_target(drafter_config(reader, 1, 1.0), reader)
        tensors = {name: value.clone() for name, value in module.state_dict().items()}
        native: Any = load_target(folder, family, torch.float32, cpu)
        here = Parts(native, EagleDrafter(module.config, dict(tensors), native))
        spec = native_spec(read_config(folder))
        assert not isinstance(spec, str)
        with pretend_cuda(), device_ops():
            static = load_static(
                WeightFiles(folder), family, spec, torch.float32, DEVICE, native.head_hash()
            )
            there = Parts(static, EagleDrafter(module.config, dict(tensors), static))
        made[family] = here, there
        return made[family]

    return make


CASES = [
    (family, shortlist, tree, sampling)
    for family in FAMILIES
    for shortlist in SHORTLISTS
    for tree in TREES
    for sampling in ("greedy", "sampled")
]
SOON = {  # each family, shortlist and tree, greedy and sampled
    (family, SHORTLISTS[(i + 3 * j) % len(SHORTLISTS)], TREES[(i + j) % len(TREES)], sampling)
    for i, family in enumerate(FAMILIES)
    for j, sampling in enumerate(("greedy", "sampled"))
}


@pytest.mark.parametrize(
    ("family", "shortlist", "tree", "sampling"),
    [pytest.param(*case, marks=() if case in SOON else pytest.mark.slow) for case in CASES],
)
def test_the_cpus_tokens(
    engines: Any,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    shortlist: str,
    tree: str,
    sampling: str,
) -> None:
    here, there = engines(family)
    shape, law = TreeConfig(tree, size=9, depth=3, width=3), SAMPLING[sampling]

    def ran(parts: Parts, at_once: bool) -> Any:
        made = a_shortlist(shortlist, parts.target)
        device = drafting(parts, made) if at_once else None
        return run(parts, made, shape, law, STEPS, device, prompt=PROMPT, room=100)

    want = ran(here, at_once=False)
    seen = noting(monkeypatch)
    with pretend_cuda() as guard, device_ops(), captured_steps(guard), captured_rounds(guard):
        assert ran(there, at_once=True).tokens == want.tokens
    assert seen == [True] * STEPS


def test_what_runs_at_once_meets_every_part() -> None:
    assert {case[0] for case in SOON} == set(FAMILIES)
    assert {case[1] for case in SOON} == set(SHORTLISTS)
    assert {case[2] for case in SOON} == set(TREES)
