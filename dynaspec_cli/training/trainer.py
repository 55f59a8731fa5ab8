"""Trains a drafter: rounds of one new shard and the minibatches drawn from the latest shards.

Everything a step does follows from the settings and the step's number, and a checkpoint holds the
rest (weights and optimiser), so that a killed run ends where an unbroken one does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.training.evaluate import HeldOutScore, module_unroll
from dynaspec_cli.training.loss import gram_matrix, unrolled_loss
from dynaspec_cli.training.loss_config import LossConfig
from dynaspec_cli.training.model import DrafterModule
from dynaspec_cli.training.shards import Shard, ShardMaker, ended

CHECKPOINT = "checkpoint.safetensors"

SAVE_EVERY_S = 120.0
"""Seconds after which a run saves between two of its checkpoints by step, so that a short one that
is killed leaves a drafter."""


class Clock(Protocol):
    """When a run has to end."""

    def share(self) -> float:
        """The share of its time that is over, in [0, 1]."""
        ...

    def left(self) -> float:
        """Seconds that are left."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """``steps`` in all; ``batch_tokens`` a step; ``unroll``: draft steps a loss looks ahead;
    ``passes``: how often a token is trained on, on average; ``window``: shards minibatches are
    drawn from."""

    steps: int = 20000
    batch_tokens: int = 1024
    unroll: int = 3
    passes: float = 2.0
    window: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    decay_share: float = 0.3
    floor: float = 0.03
    weight_decay: float = 0.01
    save_every: int = 200
    seed: int = 0
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--steps", self.steps, 1),
            ("--batch-tokens", self.batch_tokens, 16),
            ("--unroll", self.unroll, 1),
            ("--save-every", self.save_every, 1),
            ("window", self.window, 1),
        ):
            if value < least:
                raise UsageError(f"{option}: expected at least {least}, got {value}")
        if not 0 < self.passes < math.inf:
            raise UsageError(f"--passes: expected a number above 0, got {self.passes}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(
                f"--learning-rate: expected a number above 0, got {self.learning_rate}"
            )

    def rate(self, step: int, progress: float) -> float:
        """Learning rate of 1-based ``step``: linear warm-up, constant, then linear to ``floor``
        over the last ``decay_share`` of ``progress`` (the share of the run that is over, in [0,
        1])."""
        rise = min(1.0, step / self.warmup)
        left = 1.0 - progress
        fall = 1.0 if left > self.decay_share else max(self.floor, left / self.decay_share)
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class TrainProgress:
    """After a step: tokens trained on so far, ``soft_loss`` of each unrolled step (none where
    nothing was left to do), tokens a second of this run; ``last``: the run ends with it."""

    step: int
    steps: int
    tokens: int
    losses: tuple[float, ...]
    tokens_per_second: float
    last: bool
    score: HeldOutScore | None = None


class Trainer:
    """One run in one folder: checkpoint.safetensors, shards/, and the drafter itself when saved."""

    def __init__(
        self, module: DrafterModule, maker: ShardMaker, config: TrainConfig, folder: Path
    ) -> None:
        self.module, self.maker, self.config, self.folder = module, maker, config, folder
        teacher = maker.teacher
        self.device = teacher.head.device
        module.to(self.device)
        self.embedding = teacher.backbone.embedding
        self.norm = teacher.backbone.norm
        self.frequent = maker.frequent(config.loss.columns)
        self.gram = gram_matrix(teacher.head, maker.counts) if config.loss.gram else None
        matrices = [p for p in module.parameters() if p.dim() > 1]
        vectors = [p for p in module.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = 0
        self.tokens = 0
        self.base_tokens = module.config.trained_tokens
        self.sound = True
        """Whether the weights are those of ``step``: not in the middle of an update, nor after one
        that ruined them. Else nothing is saved, and the last checkpoint stays."""
        self._saved = -1
        self._ends: list[int] = []  # the last step that each shard feeds, as far as was asked

    # -- the run ----------------------------------------------------------------------------------

    def run(self, clock: Clock | None = None) -> Iterator[TrainProgress]:
        """Train to ``config.steps``, or until ``clock`` says that it is time (the learning rate
        then follows it, and no text is made that would not be ready)."""
        begun, first = time.perf_counter(), self.tokens
        saved = begun
        if self.step >= self.config.steps:
            yield TrainProgress(self.step, self.config.steps, self.tokens, (), 0.0, True)
        while self.step < self.config.steps:
            progress = (self.step + 1) / self.config.steps
            step = self.step + 1
            batch = self._batch(step, math.inf if clock is None else clock.left())
            if clock is not None:
                progress = max(progress, clock.share())
            losses = self._update(batch, self.config.rate(step, progress), step)
            self.step, self.sound = step, True  # only now: an interrupted update is made again
            now = time.perf_counter()
            rate = (self.tokens - first) / (now - begun)
            over = progress >= 1.0
            if over or self.step % self.config.save_every == 0 or now - saved > SAVE_EVERY_S:
                self.save()
                saved = time.perf_counter()
            yield TrainProgress(
                self.step, self.config.steps, self.tokens, tuple(losses), rate, over
            )
            if over:
                return

    def _round(self, step: int) -> tuple[int, random.Random]:
        """(newest shard, random numbers) of a 1-based step. A shard feeds tokens * passes /
        batch_tokens steps."""
        share = self.config.passes / self.config.batch_tokens
        while not self._ends or self._ends[-1] < step:
            steps = max(1, round(self.maker.tokens_of(len(self._ends)) * share))
            self._ends.append((self._ends[-1] if self._ends else 0) + steps)
        newest = bisect_left(self._ends, step)
        return newest, random.Random(self.config.seed * 7_919 + step)

    def _batch(self, step: int, seconds: float = math.inf) -> tuple[Tensor, Tensor, int]:
        """``seconds``: that are left; a shard that would take more to make is not begun."""
        newest, draw = self._round(step)
        while newest and self.maker.seconds_to_get(newest) > seconds:
            newest -= 1
        oldest = max(0, newest - self.config.window + 1)
        if oldest:
            self.maker.forget(oldest - 1)
        # The newest shard must exist before it is one of many, or its making would depend on the
        # draw.
        index = newest if draw.random() < 0.5 else draw.randint(oldest, newest)
        seed = draw.getrandbits(64)

        def choose(count: int, length: int) -> list[int]:
            wanted = max(1, round(self.config.batch_tokens / length))
            return random.Random(seed).sample(range(count), min(count, wanted))

        shard: Shard = self.maker.get(index, choose)
        return shard.tokens, shard.features, shard.prompt

    def _update(self, batch: tuple[Tensor, Tensor, int], rate: float, step: int) -> list[float]:
        tokens, features, prompt = batch
        features = features.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scale = self.module.config.feature_scale
        # Row t is trained towards feature t + 1, whose token the target wrote from ``prompt`` on.
        # What only reads the prompt is half of the work, and of little use in the end.
        written = prompt < tokens.shape[1]
        begin = max(prompt - 2, 0) if written and self.config.loss.prompt_weight == 0 else 0
        outputs = module_unroll(
            self.module, features, tokens, self.embedding, self.norm, self.config.unroll, begin
        )
        normed = [self.norm((out * scale).to(features.dtype)) for out in outputs]
        truth = self.norm(features[:, 1 + begin :])
        ids = torch.cat([self.frequent, tokens.unique()]).unique().to(self.device)
        # What stands after the end of a text is never decoded.
        going = ~ended(tokens, prompt, self.maker.ends)[:, 1 + begin :]
        weight = going.float().to(self.device)
        if written and not begin:
            weight[:, : max(prompt - 2, 0)] *= self.config.loss.prompt_weight
        loss, values = unrolled_loss(
            normed, truth, self.maker.teacher.head[ids], self.gram, weight, self.config.loss
        )
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for name, value in (("loss", loss), ("gradient", norm)):
            if not torch.isfinite(value):
                self.sound = False  # most likely an update before this one ruined the weights
                raise DynaSpecError(
                    f"train-drafter: the {name} became {float(value.detach())} at step {step}; go "
                    "on from the last checkpoint with --resume and a lower --learning-rate"
                )
        self.sound = False
        self.optimizer.step()
        self.tokens += tokens.numel()
        return values

    # -- files ------------------------------------------------------------------------------------

    def save(self) -> None:
        """The checkpoint, then the drafter made of it; neither where the weights are not
        ``sound``, nor twice, nor before a first step."""
        if self.sound and self.step and self._saved != self.step:
            self.save_checkpoint()
            self.save_drafter()
            self._saved = self.step

    def save_checkpoint(self) -> None:
        """Weights, both moments of every weight, and the counters; written beside and renamed."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
            for moment in ("exp_avg", "exp_avg_sq"):
                state = self.optimizer.state.get(parameter, {})
                if moment in state:
                    tensors[f"{moment}.{name}"] = state[moment].cpu().contiguous()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / (CHECKPOINT + ".part")
        metadata = {
            "step": str(self.step),
            "tokens": str(self.tokens),
            "config": json.dumps(self._identity()),
            "base_tokens": str(self.base_tokens),
        }
        save_file(tensors, part, metadata=metadata)
        part.replace(self.folder / CHECKPOINT)

    @staticmethod
    def saved_config(folder: Path) -> DrafterConfig:
        """The drafter's config of a run's checkpoint: a run begun with ``--start`` keeps it."""
        with safe_open(_checkpoint(folder), "pt") as file:
            saved = json.loads(file.metadata()["config"])["drafter"]
        return DrafterConfig.from_values(json.loads(saved), f"checkpoint {folder}")

    @staticmethod
    def saved_shards(folder: Path) -> str:
        """The ``ShardConfig`` of a run's checkpoint, as text."""
        with safe_open(_checkpoint(folder), "pt") as file:
            return str(json.loads(file.metadata()["config"])["shards"])

    def resume(self) -> None:
        """Continue from the folder's checkpoint. Raises DynaSpecError where the settings differ
        from the run's."""
        path = _checkpoint(self.folder)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        saved, own = json.loads(metadata["config"]), self._identity()
        for key in own:
            if saved.get(key) != own[key]:
                raise DynaSpecError(
                    f"--resume: {self.folder} was made with {key} {saved.get(key)}, now "
                    f"{own[key]}; use the same settings"
                )
        tensors = load_file(path)
        for name, parameter in self.module.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    # On the parameters' device, as the fused optimiser keeps it.
                    "step": torch.tensor(float(metadata["step"]), device=self.device),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(self.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self.device),
                }
        self.step, self.tokens = int(metadata["step"]), int(metadata["tokens"])
        self.base_tokens = int(metadata.get("base_tokens", self.base_tokens))

    def _identity(self) -> dict[str, str]:
        """What must not change between the parts of a run (``steps`` may, and the learning rate: a
        run can go on)."""
        settings = dataclasses.replace(self.config, steps=1, save_every=1, learning_rate=1.0)
        drafter = dataclasses.replace(self.module.config, trained_tokens=0)
        return {
            # Runs from before there was a choice go on.
            "settings": str(settings).replace(", variation=0.0", ""),
            "drafter": drafter.to_json(),
            "shards": str(self.maker.config),
        }

    def save_drafter(self) -> None:
        """The drafter's own folder: config.json and model.safetensors (bf16)."""
        config: DrafterConfig = dataclasses.replace(
            self.module.config, trained_tokens=self.base_tokens + self.tokens
        )
        tensors = {
            name: p.detach().to(torch.bfloat16).cpu().contiguous()
            for name, p in self.module.named_parameters()
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, write in (
            ("model.safetensors", lambda path: save_file(tensors, path)),
            ("config.json", lambda path: path.write_text(config.to_json(), encoding="utf-8")),
        ):
            part = self.folder / (name + ".part")
            write(part)
            part.replace(self.folder / name)


def _checkpoint(folder: Path) -> Path:
    path = folder / CHECKPOINT
    if not path.is_file():
        raise DynaSpecError(
            f"--resume: {folder} holds no {CHECKPOINT}; leave --resume out to begin"
        )
    return path
