"""The decode loop with its target, drafter and shortlist on a pretended GPU: the same tokens as on
the CPU, no operation on tensors of two devices, no wait that is not named."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from pretend import (
    DEVICE,
    DeviceTensor,
    MixedDevicesError,
    StreamOrderError,
    on_device,
    pretend_cuda,
    to_host,
)
from pretend_ops import device_ops
from static_step import captured_steps
from sync_guard import HostSyncError

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.shortlist.dynaspec import DynaSpecShortlist
from dynaspec_cli.shortlist.frequency import FrequencyShortlist
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist
from dynaspec_cli.shortlist.router import Router
from dynaspec_cli.target.load import load_transformers
from dynaspec_cli.target.native_spec import native_spec, read_config
from dynaspec_cli.target.static.target import load_static
from dynaspec_cli.target.transformers_target import TransformersTarget
from dynaspec_cli.target.weights import WeightFiles
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.tree.registry import TREES, create_tree

PROMPT = torch.tensor([5, 9, 200, 31, 77, 5, 9])
STEPS, CORE, CLUSTERS = 4, 40, 12
SHORTLISTS = (
    "full",
    "fr-spec",
    "two tokens",
    "nanospec",
    "dynaspec, early router",
    "dynaspec, late router",
)
SAMPLING = {
    "greedy": SamplingConfig(),
    "sampled": SamplingConfig(temperature=1.0, seed=3),
    "filtered": SamplingConfig(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, seed=3),
}


class Parts(NamedTuple):
    target: Any
    drafter: EagleDrafter


class _Moved(TransformersTarget):
    """A checked target on another device: what loading does with the weights reads memory that a
    pretended device does not have."""

    def _self_check(self) -> None:
        return None

    def head_hash(self) -> str:
        return head_hash(to_host(self.head_weight().data))


def _parts(
    folder: Any, device: torch.device, dtype: torch.dtype, kind: str = "transformers"
) -> Parts:
    target: Any = load_transformers(folder, "tiny", dtype, torch.device("cpu"))
    torch.manual_seed(0)
    module = from_target(drafter_config(target, 1, 1.0), target)
    if device == DEVICE and kind == "transformers":
        target = _Moved(on_device(target.model), "tiny")
    elif device == DEVICE:
        spec = native_spec(read_config(folder))
        assert not isinstance(spec, str)
        known = target.head_hash()
        target = load_static(WeightFiles(folder), "tiny", spec, dtype, DEVICE, known)
    return Parts(target, EagleDrafter(module.config, dict(module.state_dict()), target))


@pytest.fixture(scope="module")
def on_cpu(tiny_model_dir):
    return _parts(tiny_model_dir, torch.device("cpu"), torch.float32)


@pytest.fixture
def guard():
    with pretend_cuda() as active, device_ops(), captured_steps(active):
        yield active


@pytest.fixture(scope="module", params=["static", "transformers"])
def on_cuda(request, tiny_model_dir):
    with pretend_cuda(), device_ops():
        return _parts(tiny_model_dir, DEVICE, torch.float32, request.param)


def _shortlist(name: str, target: Any) -> Any:
    weight = target.head_weight()
    vocab, dim = weight.rows, weight.columns
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))
    if name == "full":
        return FullShortlist(build_head(weight))
    if name == "nanospec":
        return NanoSpecShortlist(build_head(weight), 32)
    if name == "two tokens":  # fewer than the policies ask for
        return FrequencyShortlist("fr-spec", build_head(weight, order[:2]), (2,))
    if name == "fr-spec":
        return FrequencyShortlist("fr-spec", build_head(weight, order[:150]), (150, 100))
    g = torch.Generator().manual_seed(2)
    early = "early" in name
    shapes = {"w2": (CLUSTERS, 16 if early else dim), "b2": (CLUSTERS,)}
    if early:
        shapes |= {"w1": (16, 2 * dim), "b1": (16,)}
    weights = {part: torch.randn(shape, generator=g) for part, shape in shapes.items()}
    router = Router("mlp" if early else "output", weights, target.device)
    offsets = torch.linspace(CORE, vocab, CLUSTERS + 1).int()
    head = build_head(weight, order)
    return DynaSpecShortlist(head, target, router, offsets, (160, 120), CORE, 30, "constant")


def _tokens(
    parts: Parts, shortlist: str | None, tree: str, sampling: SamplingConfig, guard: Any = None
) -> list[int]:
    speculation = None
    if shortlist is not None:
        config = TreeConfig(policy=tree, size=9, depth=3, width=3)
        speculation = Speculation(
            parts.drafter, _shortlist(shortlist, parts.target), create_tree(config, sampling)
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
    for name in ("full", "dynaspec, late router")
    for tree in TREES.names()
    if tree != "auto"  # refused: timed trees have no seed
]
CASES += [("dynaspec, early router", "filtered", tree) for tree in ("eagle2", "dyspec")]


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
    expected = _tokens(
        _parts(tiny_model_dir, torch.device("cpu"), torch.bfloat16), None, "", SAMPLING["greedy"]
    )
    parts = _parts(tiny_model_dir, DEVICE, torch.bfloat16, kind)
    got = _tokens(parts, "dynaspec, late router", "dyspec", SAMPLING["greedy"], guard)
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
