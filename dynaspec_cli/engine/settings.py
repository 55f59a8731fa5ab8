"""What a result says of how it was made: every option as used, versions, threads and kernels."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from dynaspec_cli import __version__, ops
from dynaspec_cli.config import GenerationConfig, TreeConfig
from dynaspec_cli.engine.draft import Speculation
from dynaspec_cli.protocols import Target
from dynaspec_cli.tuning.costs import CostTable


def request_settings(
    target: Target, config: GenerationConfig, drafting: Mapping[str, Any]
) -> dict[str, Any]:
    """Of a request, with those of its drafts in between."""
    sampling = config.sampling
    dtype = str(target.dtype).removeprefix("torch.")
    return {
        "model": target.name,
        "vocab_size": target.vocab_size,
        "dtype": dtype,
        "weights": getattr(target, "form", dtype),
        "device": str(target.device),
        "threads": torch.get_num_threads(),
        "max_new_tokens": config.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "stop": list(config.stop),
        **drafting,
        "kernels": ops.backend(target.device),
        "target_kernels": target.kernels,
        "versions": {
            "dynaspec": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }


def drafting_settings(
    config: GenerationConfig,
    speculation: Speculation,
    tree: TreeConfig,
    size: int,
    costs: CostTable | None,
) -> dict[str, Any]:
    """Of what drafts: ``tree`` with ``size`` nodes, as it was made of the one that was asked for;
    ``costs``: what sizes adapt to."""
    drafter, policy = speculation.drafter, speculation.policy
    return {
        "drafter": drafter.name + ("+lookup" if speculation.lookup else ""),
        **drafter.describe(),
        **_shortlist_settings(config, speculation),
        "tree": tree.policy,
        "tree_size": size,
        "tree_depth": tree.depth,
        "tree_width": tree.width,
        "tree_adapts": tree.adapts,
        "tree_costs": None if costs is None else _cost_settings(costs),
        "tree_threshold": getattr(policy, "threshold", None),
        "tree_draw": "sample" if tree.draws(config.sampling) else "best",
        "draft_temperature": tree.temperature(config.sampling),
        "tree_verification": tree.verification,
        **getattr(policy, "settings", {}),
    }


def _cost_settings(table: CostTable) -> dict[str, float]:
    """Milliseconds of passes by rows, of a round that drafts, and of a draft step."""
    passes = zip(table.rows, table.pass_ms, strict=True)
    drafts = {
        "draft_round": round(table.base_ms, 3),
        "draft_step": round(table.draft_ms, 3),
        "read_token": round(table.read_ms, 4),
    }
    return {f"rows_{n}": round(ms, 3) for n, ms in passes} | drafts


def _shortlist_settings(config: GenerationConfig, speculation: Speculation) -> dict[str, Any]:
    shortlist, head = speculation.shortlist, speculation.drafter.head
    if shortlist is None or head is None:
        return {"shortlist": "none"}
    return {
        "shortlist": shortlist.name,
        "shortlist_source": config.shortlist.method,
        "shortlist_size": shortlist.size,
        "drafter_head": head.describe(),
        "draft_head": config.shortlist.head,
    }
