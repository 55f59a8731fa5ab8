"""What the first minutes on a GPU measure (gpu_first_minutes.py): a function a stage, each of which
returns facts as JSON values."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from gpu_random_model import LLAMA_8B, Sizes, passing_drafter, random_target

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.drafting import DeviceDrafting
from dynaspec_cli.device.kernels import head_topk, tree_attention
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.engine.session import decode
from dynaspec_cli.ops.product import grouped_attention
from dynaspec_cli.ops.reference import pre_norm_layer
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.sampling.verify import pass_and_verify
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.nanospec import NanoSpecShortlist
from dynaspec_cli.target.static.sizes import SPLIT_FROM, splits_of
from dynaspec_cli.tree.registry import create_tree

GREEDY, DRAWN = SamplingConfig(), SamplingConfig(temperature=1.0)
WAYS = (
    ("drafts", "eagle2", GREEDY, True),
    ("drafts_step_by_step", "eagle2", GREEDY, False),
    ("drawn", "dyspec", DRAWN, True),
)
"""(name, tree, law, drafted at once) of what is timed beside plain decoding."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """``steps``: repeats of what is timed; ``contexts``: lengths at which a pass is timed;
    ``shortlist``: tokens a draft step scores."""

    device: torch.device
    sizes: Sizes = LLAMA_8B
    dtype: torch.dtype = torch.bfloat16
    steps: int = 20
    contexts: tuple[int, ...] = (512, 2048, 8192)
    shortlist: int = 8192
    nodes: int = 60
    depth: int = 6

    @property
    def there(self) -> bool:
        """Is there a real GPU?"""
        return self.device.type == "cuda" and torch.cuda.is_available()


def milliseconds(setting: Setting, step: Callable[[], object]) -> float:
    """Median of wall-clock times, the device waited for."""
    times = []
    for _ in range(setting.steps):
        begun = time.perf_counter()
        step()
        if setting.there:
            torch.cuda.synchronize(setting.device)
        times.append(time.perf_counter() - begun)
    return 1e3 * sorted(times)[len(times) // 2]


def facts(setting: Setting) -> Facts:
    """Versions and read bandwidth."""
    import sys

    from dynaspec_cli.ops import backend_reason

    found: Facts = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "extension": backend_reason(setting.device),
    }
    count = 1 << (29 if setting.there else 16)
    data = torch.ones(count, device=setting.device)
    data.sum()
    ms = milliseconds(setting, data.sum)
    found["read_gb_per_s"] = round(4e-6 * count / ms, 1)
    if setting.there:
        found["gpu"] = torch.cuda.get_device_name(setting.device)
    return found


def kernels(setting: Setting) -> Facts:
    """The drafter's layer, the head of a shortlist against the whole one, attention of a tree."""
    target = random_target(setting.sizes, setting.dtype, setting.device)
    shape, weights = target._model.spec.shapes[0], target._model.weights.layers[0]
    found: Facts = {}
    head, table = target.head, target.head.weight.data
    for rows in (1, 10):
        x = torch.ones(rows, setting.sizes.hidden, device=setting.device)
        turn = torch.ones(rows, setting.sizes.head_dim, device=setting.device)

        def layer(x: Any = x, turn: Any = turn) -> Any:
            flat = (x.shape[0], -1)
            return pre_norm_layer(x, weights, turn, turn, shape, lambda q, k, v: q.reshape(flat))

        layer()
        found[f"layer_without_attention_{rows}_rows_ms"] = milliseconds(setting, layer)
        head.logits(x)
        found[f"whole_head_{rows}_rows_ms"] = milliseconds(setting, lambda x=x: head.logits(x))
        ids = torch.arange(setting.shortlist, device=setting.device) % setting.sizes.vocab

        def some(x: Any = x, ids: Any = ids) -> Any:
            return x.to(table.dtype) @ table.index_select(0, ids).t()

        some()
        found[f"gathered_head_{setting.shortlist}_{rows}_rows_ms"] = milliseconds(setting, some)
        count = torch.full((), setting.shortlist, device=setting.device)

        def fused(x: Any = x, ids: Any = ids, count: Any = count) -> Any:
            return head_topk(x, table, ids, count, 10, 1.0)

        fused()
        found[f"head_topk_{setting.shortlist}_{rows}_rows_ms"] = milliseconds(setting, fused)
    return found | _attention(setting)


def _attention(setting: Setting) -> Facts:
    """Attention of one layer over a tree, keys split and scores written, by context."""
    sizes, place, found = setting.sizes, setting.device, dict[str, Any]()
    for context in setting.contexts:
        for rows in (16, 64):
            q = torch.ones(rows, sizes.heads, sizes.head_dim, device=place)
            shape = (context + rows, sizes.kv_heads, sizes.head_dim)
            keys, values = (torch.ones(shape, dtype=setting.dtype, device=place) for _ in "kv")
            length = torch.full((1,), context, device=place)
            depth = torch.zeros(2 * rows, dtype=torch.int64, device=place)
            bits = torch.ones_like(depth[:rows]) << torch.arange(rows, device=place)
            seen = torch.ones(rows, shape[0], dtype=torch.bool, device=place)
            splits = splits_of(rows, max(context, SPLIT_FROM))
            tree, given = (length, depth, bits), (q, keys, values)
            ways = {
                "split": partial(tree_attention, *given, *tree, 0.1, 0, 0.0, splits),
                "written": partial(grouped_attention, *given, seen, 0.1),
            }
            for name, way in ways.items():
                way()
                found[f"attention_{name}_{context}_{rows}_rows_ms"] = milliseconds(setting, way)
    return found


def binary_tree(nodes: int, token: int) -> DraftTree:
    """All of one token: the greedy walk of a random model stays on it."""
    parents = torch.tensor([-1] + [(i - 1) // 2 for i in range(1, nodes + 1)])
    return DraftTree(torch.full((nodes + 1,), token), parents)


def passes(setting: Setting) -> Facts:
    """The static target: captures, milliseconds of a plain step and a verification by context, and
    whether captured passes emit what the same passes do without a graph."""
    target = random_target(setting.sizes, setting.dtype, setting.device)
    source, found = GeneratorSource(0), dict[str, Any]()
    begun = time.perf_counter()
    target.capture(setting.contexts[0] + 200)
    found["capture_s"] = round(time.perf_counter() - begun, 2)
    for context in setting.contexts:
        state = target.begin(context + 40 + 70 * (setting.steps + 4))
        target.prefill(state, torch.arange(context) % setting.sizes.vocab)
        for name, nodes in (("plain", 0), ("verify", setting.nodes)):
            tree = binary_tree(nodes, 5)

            def step(tree: DraftTree = tree, state: Any = state) -> None:
                _, _, verdict = pass_and_verify(target, state, tree, GREEDY, source)
                target.commit(state, verdict.path)

            step()
            step()
            found[f"{name}_{context}_ms"] = round(milliseconds(setting, step), 3)
        del state
    found["captured_as_eager"] = _tokens(target, setting, None) == _eager_tokens(target, setting)
    return found


def _tokens(target: Any, setting: Setting, speculation: Speculation | None) -> list[int]:
    prompt = torch.arange(40) + 3
    steps = decode(target, prompt, 1024, GREEDY, GeneratorSource(0), speculation)
    return [t for emission in islice(steps, setting.steps) for t in emission.token_ids]


def _eager_tokens(target: Any, setting: Setting) -> list[int]:
    pool, free = target._pool, target._free
    target._pool, target._free = None, []
    try:
        return _tokens(target, setting, None)
    finally:
        target._pool, target._free = pool, free


def _speculation(
    target: Any, setting: Setting, tree: str, law: SamplingConfig, rounds: bool
) -> Speculation:
    """``rounds``: drafted at once, on the device."""
    config = TreeConfig(policy=tree, size=setting.nodes, depth=setting.depth, width=10)
    drafter = passing_drafter(target, setting.sizes)
    shortlist = NanoSpecShortlist(build_head(target.head_weight()), setting.shortlist)
    at_once = DeviceDrafting.of(drafter, shortlist, target) if rounds else None
    policy = create_tree(config, law, GeneratorSource(0, DRAFT_STREAM))
    return Speculation(drafter, shortlist, policy, size=setting.nodes, at_once=at_once)


def whole(setting: Setting) -> Facts:
    """Whole steps with drafts, every one accepted when greedy: milliseconds, tokens, launches and
    waits; drafted at once, step by step, and drawn."""
    return _whole(setting, random_target(setting.sizes, setting.dtype, setting.device))


def _whole(setting: Setting, target: Any) -> Facts:
    found: Facts = {"kernels": target.kernels}
    drafts: dict[str, tuple[SamplingConfig, Speculation | None]] = {"plain": (GREEDY, None)}
    for name, tree, law, rounds in WAYS:
        drafts[name] = law, _speculation(target, setting, tree, law, rounds)
    for name, (law, speculation) in drafts.items():
        prompt = torch.arange(40) + 3
        length = 60 + 8 * (setting.steps + 12)
        steps = decode(target, prompt, length, law, GeneratorSource(0), speculation)
        list(islice(steps, 4))
        tokens, begun = 0, time.perf_counter()
        for emission in islice(steps, setting.steps):
            tokens += len(emission.token_ids)
        spent = time.perf_counter() - begun
        found[f"{name}_step_ms"] = round(1e3 * spent / setting.steps, 3)
        found[f"{name}_tokens_per_step"] = tokens / setting.steps
        if setting.there:
            found[f"{name}_runtime_calls"] = _profile(steps)
        del steps
    return found


def _profile(steps: Any) -> dict[str, float]:
    """Calls of the CUDA runtime a step, over three."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        list(islice(steps, 3))
    counts = {event.key: event.count / 3 for event in seen.key_averages()}
    return {name: counts[name] for name in sorted(counts) if name.startswith("cuda")}


def transformers(setting: Setting) -> Facts:
    """The same through transformers' eager layers: what the static target replaces."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from dynaspec_cli.target.transformers_target import TransformersTarget

    default = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    try:
        values = {k: v for k, v in setting.sizes.config().items() if k != "model_type"}
        with torch.device(setting.device if setting.there else "cpu"):
            model = LlamaForCausalLM(LlamaConfig(**values))
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1e-3)
    return _whole(setting, TransformersTarget(model, "random", known_hash="random"))


def compiled(setting: Setting) -> Facts:
    """One layer under torch.compile against the same as it is, 16 rows."""
    target = random_target(setting.sizes, setting.dtype, setting.device)
    shape, weights = target._model.spec.shapes[0], target._model.weights.layers[0]
    x = torch.ones(16, setting.sizes.hidden, device=setting.device)
    turn = torch.ones(16, setting.sizes.head_dim, device=setting.device)

    def layer(x: Any) -> Any:
        return pre_norm_layer(x, weights, turn, turn, shape, lambda q, k, v: q.reshape(16, -1))

    with torch.inference_mode():
        layer(x)
        found = {"eager_ms": milliseconds(setting, lambda: layer(x))}
        if setting.there:
            fast = torch.compile(layer)
            fast(x)
            found["compiled_ms"] = milliseconds(setting, lambda: fast(x))
    return found


STAGES: dict[str, Callable[[Setting], Facts]] = {
    "facts": facts,
    "kernels": kernels,
    "passes": passes,
    "transformers": transformers,
    "whole": whole,
    "compiled": compiled,
}
