"""The whole engine on a GPU: the tokens of the CPU engine with every tree, greedy and sampled, and
captured passes that are what the same passes are without a graph."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.drafting import DeviceDrafting
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.errors import NotFiniteError
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist
from dynaspec_cli.target.load import load_target, load_transformers
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.tree.registry import TREES, create_tree

PROMPT = torch.tensor([5, 9, 200, 31, 77, 5, 9])
STEPS = 12
SAMPLING = {
    "greedy": SamplingConfig(),
    "sampled": SamplingConfig(temperature=1.0, seed=3),
    "filtered": SamplingConfig(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, seed=3),
}


@pytest.fixture(scope="module")
def engines(tiny_model_dir: Any) -> dict[str, tuple[Any, EagleDrafter]]:
    """By device: the target that is chosen there, in float32, and a drafter of one layer."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    reader = load_transformers(tiny_model_dir, "tiny", torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    module = from_target(drafter_config(reader, 1, 1.0), reader)
    found = {}
    for name in ("cpu", "cuda"):
        target = load_target(tiny_model_dir, "tiny", torch.float32, torch.device(name))
        state = {key: value.clone() for key, value in module.state_dict().items()}
        found[name] = (target, EagleDrafter(module.config, state, target))
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return found


def tokens(
    engine: tuple[Any, EagleDrafter], tree: str | None, shortlist: str, sampling: SamplingConfig
) -> list[int]:
    target, drafter = engine
    speculation = None
    if tree is not None:
        head = build_head(target.head_weight())
        scored = FullShortlist(head) if shortlist == "full" else NanoSpecShortlist(head, 48)
        draws = GeneratorSource(sampling.seed, DRAFT_STREAM)
        policy = create_tree(TreeConfig(policy=tree, size=9, depth=3, width=3), sampling, draws)
        at_once = None
        if target.device.type == "cuda" and tree != "auto":
            at_once = DeviceDrafting.of(drafter, scored, target)
            assert at_once is not None
        speculation = Speculation(drafter, scored, policy, size=9, at_once=at_once)
    source = GeneratorSource(sampling.seed)
    steps = decode(target, PROMPT, 200, sampling, source, speculation)
    return [token for emission in islice(steps, STEPS) for token in emission.token_ids]


CASES = [
    (tree, name, shortlist)
    for tree in [None, *TREES.names()]
    for name in SAMPLING
    for shortlist in ("full", "nanospec")
    if not (tree == "auto" and name != "greedy") and not (tree is None and shortlist != "full")
]


@pytest.mark.parametrize(("tree", "name", "shortlist"), CASES)
def test_the_tokens_of_the_cpu(engines: Any, tree: str | None, name: str, shortlist: str) -> None:
    """In float32, where what differs is the order of sums."""
    expected = tokens(engines["cpu"], tree, shortlist, SAMPLING[name])
    got = tokens(engines["cuda"], tree, shortlist, SAMPLING[name])
    length = min(len(got), len(expected))
    assert length >= STEPS
    assert got[:length] == expected[:length]


def test_the_static_target_was_chosen(engines: Any) -> None:
    target, _ = engines["cuda"]
    assert type(target).__name__ == "StaticTarget"
    assert target.kernels == "static (CUDA graphs)"


@pytest.mark.parametrize("name", SAMPLING)
def test_a_captured_pass_is_the_pass(engines: Any, name: str) -> None:
    target, _ = engines["cuda"]
    captured = tokens(engines["cuda"], "eagle2", "full", SAMPLING[name])
    pool, free = target._pool, target._free
    target._pool, target._free = None, []
    try:
        assert tokens(engines["cuda"], "eagle2", "full", SAMPLING[name]) == captured
    finally:
        target._pool, target._free = pool, free


def test_nan_is_an_error(engines: Any) -> None:
    target, _ = engines["cuda"]
    state = target.begin(40)
    target.prefill(state, PROMPT)
    weight = target._model.weights.layers[0].down
    kept = weight.clone()
    weight[0, 0] = torch.nan
    try:
        with pytest.raises(NotFiniteError):
            target.decide(
                state, DraftTree(torch.tensor([3]), torch.tensor([-1])), SAMPLING["greedy"], None
            )
    finally:
        weight.copy_(kept)


def test_greedy_in_bfloat16_is_plain_decoding(tiny_model_dir: Any, engines: Any) -> None:
    """Trees of up to 15 nodes run in the shapes of plain decoding; the order in which keys are
    summed still differs, so near-ties could flip. This says whether any did."""
    target = load_target(tiny_model_dir, "tiny", torch.bfloat16, torch.device("cuda"))
    _, drafter = engines["cpu"]
    engine = (target, EagleDrafter(drafter.config, _tensors(drafter), target))
    plain = tokens(engine, None, "full", SAMPLING["greedy"])
    drafted = tokens(engine, "eagle2", "full", SAMPLING["greedy"])
    length = min(len(plain), len(drafted))
    assert drafted[:length] == plain[:length]


def _tensors(drafter: EagleDrafter) -> dict[str, torch.Tensor]:
    """A drafter's tensors by the names of its file."""
    from dynaspec_cli.ops.layer import LAYER_WEIGHTS

    names = ["feature_norm", "next_norm", "current_norm"]
    found = dict(zip(names, drafter.norms, strict=False))
    found |= {"gate": drafter.gate, "fc": drafter.fc}
    for index, layer in enumerate(drafter.layers):
        for name in LAYER_WEIGHTS:
            value = getattr(layer, name)
            found[f"layers.{index}.{name}"] = value[0] if isinstance(value, tuple) else value
    return found
