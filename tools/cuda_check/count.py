"""Operations, waits and copies of a step on the pretended GPU, before and after the static target.

    python tools/cuda_check/count.py

A Llama of 32 layers (as Llama-3-8B has) and tiny matrices: counts do not depend on widths. An
operation counts as one launch, a Triton kernel as its two; where PyTorch launches several kernels
for one operation (a sort) that is not seen, and nothing is said about time.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pretend import DEVICE, PretendCuda, on_device, pretend_cuda
from pretend_ops import device_ops, triton_ops
from static_step import captured_rounds, captured_steps

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.drafting import DeviceDrafting
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.sampling.verify import pass_and_verify
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist
from dynaspec_cli.target.load import load_transformers
from dynaspec_cli.target.native_spec import native_spec, read_config
from dynaspec_cli.target.static.target import load_static
from dynaspec_cli.target.transformers_target import TransformersTarget
from dynaspec_cli.target.weights import WeightFiles
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.tree.registry import create_tree

LAYERS, NODES, DEPTH = 32, 60, 6
GREEDY, DRAWN = SamplingConfig(), SamplingConfig(temperature=1.0)


class Moved(TransformersTarget):
    def _self_check(self) -> None:
        return None

    def head_hash(self) -> str:
        return "counted"


def model_folder(folder: Path, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def targets(folder: Path) -> dict[str, tuple[Any, EagleDrafter]]:
    """By name: a target on the pretended GPU and a drafter of one layer for it."""
    kind = torch.bfloat16
    reader: Any = load_transformers(folder, "counted", kind, torch.device("cpu"))
    module = from_target(drafter_config(reader, 1, 1.0), reader)
    module.config = type(module.config)(**{**module.config.__dict__, "head_hash": "counted"})
    spec = native_spec(read_config(folder))
    assert not isinstance(spec, str)
    static = load_static(WeightFiles(folder), "counted", spec, kind, DEVICE, "counted")
    found: dict[str, Any] = {"transformers": Moved(on_device(reader.model), "counted")}
    found["static"] = static
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return {
        name: (target, EagleDrafter(module.config, dict(state), target))
        for name, target in found.items()
    }


def counted(guard: PretendCuda, step: Callable[[], object]) -> dict[str, int]:
    guard.counts.clear()
    step()
    return {name: guard.counts[name] for name in ("launches", "captured", "waits", "to_device")}


def steps_of(guard: PretendCuda, target: Any, drafter: EagleDrafter) -> dict[str, dict[str, int]]:
    """Counts by step. The first of each kind is not counted: it may fill tables."""
    state = target.begin(512)
    target.prefill(state, torch.arange(40) + 3)
    source = GeneratorSource(0)
    root = DraftTree(torch.tensor([5]), torch.tensor([-1]))
    parents = torch.tensor([-1] + [(i - 1) // 2 for i in range(1, NODES + 1)])
    tree = DraftTree(torch.arange(NODES + 1) + 2, parents)

    def verify(tree: DraftTree) -> None:
        _, _, verdict = pass_and_verify(target, state, tree, GREEDY, source)
        target.commit(state, verdict.path)

    out = {}
    for name, given in (("plain step", root), (f"verification, {NODES + 1} rows", tree)):
        verify(given)
        out[name] = counted(guard, lambda given=given: verify(given))
    shortlist = NanoSpecShortlist(build_head(target.head_weight()), 64)
    for name, at_once in (
        (f"whole step, draft of {DEPTH} included", None),
        ("the same, drafted at once", DeviceDrafting.of(drafter, shortlist, target)),
    ):
        for kind, tree, law in (("", "eagle2", GREEDY), (", drawn", "dyspec", DRAWN)):
            shape = TreeConfig(policy=tree, size=NODES, depth=DEPTH, width=10)
            policy = create_tree(shape, law, GeneratorSource(0, DRAFT_STREAM))
            parts = Speculation(drafter, shortlist, policy, at_once=at_once)
            steps = decode(target, torch.arange(40) + 3, 512, law, source, parts)
            list(islice(steps, 3))
            out[name + kind] = counted(guard, lambda steps=steps: next(steps))
    return out


def main() -> int:
    rows: dict[str, dict[str, dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as name, pretend_cuda() as guard, device_ops():
        model_folder(Path(name), LAYERS)
        with captured_steps(guard) as met, captured_rounds(guard), triton_ops():
            for kind, (target, drafter) in targets(Path(name)).items():
                rows[kind] = steps_of(guard, target, drafter)
    columns = ("a step", "target", "launches", "in one graph", "waits", "copies to the device")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for step in rows["static"]:
        for kind, counts in rows.items():
            numbers = " | ".join(str(n) for n in counts[step].values())
            print(f"| {step} | {kind} | {numbers} |")
    forms = sorted(f"{form.rows} rows ({form.mode.value})" for form in met)
    print("forms met:", ", ".join(forms))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
