"""The decode loop with its target, drafter and shortlist on a pretended GPU: the same tokens as on
the CPU, no operation on tensors of two devices, no wait that is not named."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from pretend import (
    DEVICE,
    DeviceTensor,
    MixedDevicesError,
    StreamOrderError,
    pretend_cuda,
)
from pretend_ops import device_ops
from static_step import captured_steps
from sync_guard import HostSyncError

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.tree.registry import TREES, create_tree

from .parts import PROMPT, SAMPLING, Parts, parts_on
from .shortlists import SHORTLISTS, a_shortlist

STEPS = 4


@pytest.fixture(scope="module")
def on_cpu(tiny_model_dir):
    return parts_on(tiny_model_dir, torch.device("cpu"))


@pytest.fixture
def guard():
    with pretend_cuda() as active, device_ops(), captured_steps(active):
        yield active


@pytest.fixture(scope="module", params=["static", "transformers"])
def on_cuda(request, tiny_model_dir):
    with pretend_cuda(), device_ops():
        return parts_on(tiny_model_dir, DEVICE, kind=request.param)


def _tokens(
    parts: Parts, shortlist: str | None, tree: str, sampling: SamplingConfig, guard: Any = None
) -> list[int]:
    speculation = None
    if shortlist is not None:
        config = TreeConfig(policy=tree, size=9, depth=3, width=3)
        speculation = Speculation(
            parts.drafter, a_shortlist(shortlist, parts.target), create_tree(config, sampling)
        )
    source = GeneratorSource(sampling.seed)
    steps = decode(parts.target, PROMPT, 200, sampling, source, speculation)
    tokens = list(next(steps).token_ids)
    if guard is not None:
        guard.hot = True
    for emission in islice(steps, STEPS):
        tokens += emission.token_ids
    return tokens


# Sampling asks for whole distributions, of a fixed selection or of one the device chose.
CASES = [(name, "greedy", tree) for name in SHORTLISTS for tree in TREES.names()]
CASES += [
    (name, "sampled", tree)
    for name in ("full", "late router")
    for tree in TREES.names()
    if tree != "auto"  # refused: timed trees have no seed
]
CASES += [("early router", "filtered", tree) for tree in ("eagle2", "dyspec")]


@pytest.mark.parametrize(("shortlist", "name", "tree"), CASES)
def test_the_same_tokens_as_on_the_cpu(on_cpu, on_cuda, guard, shortlist, name, tree):
    expected = _tokens(on_cpu, shortlist, tree, SAMPLING[name])
    assert _tokens(on_cuda, shortlist, tree, SAMPLING[name], guard) == expected
    assert guard.met  # it really ran there


@pytest.mark.parametrize("name", SAMPLING)
def test_plain_decoding(on_cpu, on_cuda, guard, name):
    expected = _tokens(on_cpu, None, "", SAMPLING[name])
    assert _tokens(on_cuda, None, "", SAMPLING[name], guard) == expected


@pytest.mark.parametrize("kind", ["static", "transformers"])
def test_bfloat16(tiny_model_dir, guard, kind):
    plain = parts_on(tiny_model_dir, torch.device("cpu"), torch.bfloat16)
    expected = _tokens(plain, None, "", SAMPLING["greedy"])
    parts = parts_on(tiny_model_dir, DEVICE, torch.bfloat16, kind)
    got = _tokens(parts, "late router", "dyspec", SAMPLING["greedy"], guard)
    length = min(len(expected), len(got))
    assert length > STEPS
    assert got[:length] == expected[:length]


def test_the_pretence_refuses_what_a_gpu_would(guard):
    x = torch.arange(4.0, device=DEVICE)
    assert isinstance(x, DeviceTensor)
    assert x.device == DEVICE
    assert torch.equal((x * 2 + 1).cpu(), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    x[1:3].add_(10)  # a view writes through
    assert x.tolist() == [0.0, 11.0, 12.0, 3.0]
    assert x[torch.tensor([2, 0])].tolist() == [12.0, 0.0]  # indices may lie on the host
    with pytest.raises(MixedDevicesError):
        x + torch.ones(4)
    with pytest.raises(MixedDevicesError):
        torch.cat([x, torch.ones(1)])
    with pytest.raises(MixedDevicesError):
        x[torch.tensor([0, 1])] = torch.ones(2)
    guard.hot = True
    for read in (
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: bool(x[0] > 1),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: torch.empty(4).copy_(x),
    ):
        with pytest.raises(HostSyncError):
            read()
        with torch.inference_mode(), pytest.raises(HostSyncError):
            read()


def test_another_stream_has_to_be_waited_for(guard):
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    x = torch.ones(3, device=DEVICE)
    with torch.cuda.stream(side):
        y = x + 1
    with pytest.raises(StreamOrderError):
        x + y
    main.wait_stream(side)
    assert (x + y).tolist() == [3.0, 3.0, 3.0]
