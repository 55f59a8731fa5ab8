"""A tiny Llama on the CPU and on the pretended GPU, with a drafter of each kind that has a form
there."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pretend import DEVICE, on_device, to_host
from safetensors.torch import save_file
from torch import Tensor

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.drafting import DeviceDrafting
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.engine.draft import Draft, Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.protocols import Drafter
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.target.load import load_transformers
from dynaspec_cli.target.native_spec import native_spec, read_config
from dynaspec_cli.target.static.target import load_static
from dynaspec_cli.target.transformers_target import TransformersTarget
from dynaspec_cli.target.weights import WeightFiles
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.tree.registry import create_tree

PROMPT = torch.tensor([5, 9, 200, 31, 77, 5, 9])
SAMPLING = {
    "greedy": SamplingConfig(),
    "sampled": SamplingConfig(temperature=1.0, seed=3),
    "filtered": SamplingConfig(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, seed=3),
    "hot": SamplingConfig(temperature=6.0, seed=3),  # what is drawn is accepted often
}
HEADS = ("eagle-1", "eagle-3")


class Parts(NamedTuple):
    target: Any
    drafter: Drafter


class _Moved(TransformersTarget):
    """A checked target on another device: what loading does with the weights reads memory that a
    pretended device does not have."""

    def _self_check(self) -> None:
        return None

    def head_hash(self) -> str:
        return head_hash(to_host(self.head_weight().data))


def a_target(folder: Path, device: torch.device, dtype: torch.dtype, kind: str) -> Any:
    """``kind``: "static" or "transformers"."""
    target: Any = load_transformers(folder, "tiny", dtype, torch.device("cpu"))
    if kind == "static":
        spec = native_spec(read_config(folder))
        assert not isinstance(spec, str)
        known = target.head_hash()
        return load_static(WeightFiles(folder), "tiny", spec, dtype, device, known)
    return target if device != DEVICE else _Moved(on_device(target.model), "tiny")


def parts_on(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    kind: str = "transformers",
    head: Path | None = None,
) -> Parts:
    """``head``: a folder of ``write_head``; else the drafter is EAGLE in this project's form, begun
    from the target: accepted often, and often not."""
    target = a_target(folder, device, dtype, kind)
    if head is not None:
        options = {"taps": "0,1,2"} if head.name == "eagle-3" else {}
        return Parts(target, load_folder(DrafterFiles(head, head.name, options), target))
    reader: Any = load_transformers(folder, "tiny", dtype, torch.device("cpu"))
    torch.manual_seed(0)
    module = from_target(drafter_config(reader, 1, 1.0), reader)
    return Parts(target, EagleDrafter(module.config, dict(module.state_dict()), target))


def write_head(method: str, folder: Path, model: Any) -> Path:
    """An EAGLE-1 or EAGLE-3 head made of the last layer of a ``transformers`` Llama."""
    given = {k: v.float().clone() for k, v in model.state_dict().items()}
    c, last = model.config, f"model.layers.{model.config.num_hidden_layers - 1}."
    one = torch.eye(c.hidden_size)
    layer = {k.removeprefix(last): v for k, v in given.items() if k.startswith(last)}
    if method == "eagle-1":
        del layer["input_layernorm.weight"]
        tensors = {f"layers.0.{k}": v for k, v in layer.items()}
        tensors["fc.weight"] = torch.cat([one, one / 2], 1)
    else:
        for name in "qkv":
            key = f"self_attn.{name}_proj.weight"
            layer[key] = torch.cat([layer[key], layer[key] / 2], 1)
        tensors = {f"midlayer.{k}": v for k, v in layer.items()}
        tensors["midlayer.hidden_norm.weight"] = torch.ones(c.hidden_size)
        tensors["fc.weight"] = torch.cat([one / 4, one / 4, one], 1)
        tensors["norm.weight"], tensors["lm_head.weight"] = (
            given["model.norm.weight"],
            given["lm_head.weight"],
        )
    names = ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size")
    config = {name: getattr(c, name) for name in (*names, "vocab_size", "rms_norm_eps")}
    config |= {"model_type": "llama", "hidden_act": "silu", "num_hidden_layers": 1}
    config |= {"draft_vocab_size": c.vocab_size} if method == "eagle-3" else {}
    folder = folder / method
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


class Run(NamedTuple):
    """``tokens`` of each step; ``counts``: what its statistics say."""

    tokens: list[list[int]]
    counts: list[Any]

    @property
    def accepted(self) -> int:
        return sum(counts[1] for counts in self.counts)


def drafting(parts: Parts, shortlist: Any) -> DeviceDrafting:
    """What drafts whole rounds on the device."""
    made = DeviceDrafting.of(parts.drafter, shortlist, parts.target)
    assert made is not None
    return made


def run(
    parts: Parts,
    shortlist: Any,
    tree: TreeConfig,
    sampling: SamplingConfig,
    steps: int,
    at_once: DeviceDrafting | None = None,
    each: Callable[[int], None] = lambda step: None,
    prompt: Tensor = PROMPT,
    room: int = 200,
) -> Run:
    """The engine's loop; ``at_once``: drafts its rounds. ``each`` is called behind each step."""
    policy = create_tree(tree, sampling, GeneratorSource(sampling.seed, DRAFT_STREAM))
    heat = 1.0 if policy.needs_distribution else tree.temperature(sampling)
    parts_ = Speculation(parts.drafter, shortlist, policy, heat, size=tree.nodes, at_once=at_once)
    loop = decode(parts.target, prompt, room, sampling, GeneratorSource(sampling.seed), parts_)
    tokens, counts = [next(loop).token_ids], []
    for i, emission in enumerate(islice(loop, steps)):
        each(i)
        step = emission.step
        assert step is not None
        tokens.append(emission.token_ids)
        scored = step.shortlist_sizes, step.covered
        counts.append((step.drafted, step.accepted, step.depth, *scored, step.drawn, step.distinct))
    return Run(tokens, counts)


def noting(monkeypatch: Any) -> list[bool]:
    """Whether each round was drafted at once."""
    seen: list[bool] = []
    at_once = Draft._grown_at_once

    def noted(self: Draft, *args: Any) -> Any:
        tree = at_once(self, *args)
        seen.append(tree is not None)
        return tree

    monkeypatch.setattr(Draft, "_grown_at_once", noted)
    return seen
