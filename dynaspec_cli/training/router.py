"""Trains a router: which token clusters hold what the target says next.

An example is a position t: the inputs of the router (training/router_data.py) and the token that
the target put at t + 1. The loss is cross-entropy over clusters with the cluster of that token as
label, weighted towards tokens that neither the core nor the context would hold anyway: those are
the router's task.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.shortlist.router import LATE, unit_rms
from dynaspec_cli.training.router_data import RouterExamples

Progress = Callable[[str, float], None]
SAVE_EVERY = 200
"""Steps between saved states."""


@dataclass(frozen=True)
class RouterTraining:
    """``kind``: "mlp", "token" or "output" (shortlist/router.py). ``steps`` of ``batch`` examples
    at a peak rate ``lr`` with warm-up and cosine decay. ``known_weight``: weight of an example
    whose token the core or the context holds already. ``max_epochs`` bounds the steps by the number
    of examples: on 80,000 of them 16 passes covered less held-out text than 4."""

    kind: str = "mlp"
    hidden: int = 512
    steps: int = 2000
    batch: int = 1024
    lr: float = 2e-3
    weight_decay: float = 0.01
    known_weight: float = 0.1
    max_epochs: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "token", "output"):
            raise DynaSpecError(
                f"router: expected mlp, token or output to train, got {self.kind!r}"
            )
        if self.steps < 1 or self.batch < 1 or self.hidden < 1:
            raise DynaSpecError("router: steps, batch and hidden must be at least 1")


class RouterModule(nn.Module):
    """The trained form of ``ops.router_clusters``; ``inputs`` width of w1's input, 0 for a linear
    router."""

    def __init__(self, inputs: int, hidden: int, num_clusters: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(hidden, inputs)) if inputs else None
        self.b1 = nn.Parameter(torch.zeros(hidden)) if inputs else None
        self.w2 = nn.Parameter(torch.empty(num_clusters, hidden))
        self.b2 = nn.Parameter(torch.zeros(num_clusters))
        if self.w1 is not None:
            nn.init.normal_(self.w1, std=1.0 / math.sqrt(inputs))
        nn.init.normal_(self.w2, std=1.0 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [n, i] -> scores float32 [n, M]."""
        if self.w1 is not None:
            x = torch.nn.functional.silu(torch.nn.functional.linear(x, self.w1, self.b1))
        return torch.nn.functional.linear(x, self.w2, self.b2)


def router_inputs(kind: str, examples: RouterExamples, rows: Tensor) -> Tensor:
    """What a router of this kind reads for the given examples, float32 [n, i]."""
    if kind in LATE:
        return examples.hidden[rows].float()
    embeddings = unit_rms(examples.embed(examples.tokens[rows]))
    if kind == "token":
        return embeddings
    return torch.cat([unit_rms(examples.features[rows]), embeddings], 1)


def initial_module(
    settings: RouterTraining, examples: RouterExamples, centers: Tensor
) -> RouterModule:
    """A linear router starts as the centroid router, whose scores are already useful."""
    torch.manual_seed(settings.seed)
    width = int(router_inputs(settings.kind, examples, torch.zeros(1, dtype=torch.int64)).shape[1])
    if settings.kind in LATE:
        module = RouterModule(0, width, int(centers.shape[0]))
        with torch.no_grad():
            module.w2.copy_(centers)
        return module
    return RouterModule(width, settings.hidden, int(centers.shape[0]))


def train_router(
    settings: RouterTraining,
    examples: RouterExamples,
    cluster_of: Tensor,
    centers: Tensor,
    *,
    progress: Progress | None = None,
    state_file: Path | None = None,
    minutes: float | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights in bf16 with biases in float32, facts for the model card).

    ``cluster_of`` int64 [V]: cluster of a token id. ``centers`` float32 [M, d] start a linear
    router. With ``state_file`` a killed run goes on from its last saved step; batches depend on
    seed and step alone, so that the result is that of one that was never killed. ``minutes`` stops
    early, with the decay of the rate brought forward.
    """
    if len(examples) == 0:
        raise DynaSpecError("router: no training example; the corpus gave no text to train on")
    module = initial_module(settings, examples, centers)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    start, loss_sum = _restore(state_file, module, optimizer) if state_file else (0, 0.0)
    weights = torch.where(examples.known, settings.known_weight, 1.0)
    labels = cluster_of[examples.labels]
    begun, step = time.monotonic(), start
    steps = min(settings.steps, math.ceil(settings.max_epochs * len(examples) / settings.batch))
    for step in range(start + 1, steps + 1):
        share = step / steps
        if minutes is not None:
            share = max(share, (time.monotonic() - begun) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _rate(step, min(1.0, share))
        rows = _batch(len(examples), settings, step)
        scores = module(router_inputs(settings.kind, examples, rows))
        losses = torch.nn.functional.cross_entropy(scores, labels[rows], reduction="none")
        w = weights[rows]
        loss = (losses * w).sum() / w.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        loss_sum += float(loss.detach())
        if progress is not None:
            progress("router", min(1.0, share))
        done = step == steps or share >= 1.0
        if state_file is not None and (step % SAVE_EVERY == 0 or done):
            _save(state_file, module, optimizer, step, loss_sum)
        if done:
            break
    facts = {
        "router_steps": step,
        "router_examples": len(examples),
        "router_loss": round(loss_sum / max(1, step), 4),
    }
    return _export(module), facts


def _rate(step: int, share: float) -> float:
    return min(1.0, step / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _batch(count: int, settings: RouterTraining, step: int) -> Tensor:
    g = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    return torch.randint(0, count, (min(settings.batch, count),), generator=g)


def _export(module: RouterModule) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in module.named_parameters()}
    return {n: v.to(torch.bfloat16) if v.ndim == 2 else v for n, v in found.items()}


def _save(
    path: Path,
    module: RouterModule,
    optimizer: torch.optim.Optimizer,
    step: int,
    loss_sum: float,
) -> None:
    from safetensors.torch import save_file

    tensors = {
        "step": torch.tensor([step]),
        "loss_sum": torch.tensor([loss_sum], dtype=torch.float64),
    }
    for name, p in module.named_parameters():
        state = optimizer.state[p]
        tensors[f"{name}.value"] = p.detach().contiguous()
        tensors[f"{name}.exp_avg"] = state["exp_avg"]
        tensors[f"{name}.exp_avg_sq"] = state["exp_avg_sq"]
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


def _restore(
    path: Path, module: RouterModule, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """(steps taken, sum of their losses); zeros where there is no state of this module."""
    from safetensors.torch import load_file

    if not path.is_file():
        return 0, 0.0
    tensors = load_file(path)
    step = int(tensors["step"])
    for name, p in module.named_parameters():
        value = tensors.get(f"{name}.value")
        if value is None or value.shape != p.shape:
            return 0, 0.0
        with torch.no_grad():
            p.copy_(value)
        optimizer.state[p] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"{name}.exp_avg"].clone(),
            "exp_avg_sq": tensors[f"{name}.exp_avg_sq"].clone(),
        }
    return step, float(tensors["loss_sum"]) if "loss_sum" in tensors else 0.0
