"""A training run from a model name and a corpus: what ``dynaspec train-drafter`` does."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.eagle import load_eagle
from dynaspec_cli.drafters.files import WEIGHTS_FILE, DrafterFiles
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target.events import LoadProgress, ProgressCallback, ignore_progress
from dynaspec_cli.target.load import choose_device, choose_dtype, load_transformers, model_folder
from dynaspec_cli.target.resolve import resolve_model
from dynaspec_cli.target.tokenizer import TextTokenizer, load_tokenizer
from dynaspec_cli.training.answers import Answers, Writers
from dynaspec_cli.training.evaluate import HeldOut, HeldOutScore, held_out_score
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.training.prompts import PromptBatch, growing, prompt_batches
from dynaspec_cli.training.shards import Shard, ShardConfig, ShardMaker
from dynaspec_cli.training.teacher import Teacher
from dynaspec_cli.training.texts import EncodedTexts, encode_texts
from dynaspec_cli.training.trainer import CHECKPOINT, TrainConfig, Trainer, TrainProgress

HELD_OUT_TEXTS = 200
HELD_OUT_SEQUENCES = 64
SHORT_MINUTES = 30.0
"""Runs of fewer are scored on a quarter of the sequences."""

OWN, VLLM = "dynaspec", "vllm"

MAX_PROMPTED_TOKENS = 768
"""Of a prompt and its continuation."""


@dataclass(frozen=True)
class RunConfig:
    """Where from and where to. ``minutes`` overrides the step count of ``train``; ``start``: a
    drafter folder to go on from. ``prompts``: files like the corpus', each text a whole prompt for
    the target to continue. ``layers`` of a new drafter (1 unless stated); ``engine`` that it is
    for, "dynaspec" (unless stated) or "vllm"."""

    model: str | None
    corpus: tuple[str, ...]
    out: Path
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    layers: int | None = None
    engine: str | None = None
    minutes: float | None = None
    resume: bool = False
    start: Path | None = None
    prompts: tuple[str, ...] = ()
    workers: int | None = None
    ray: str | None = None
    score_every: int = 200
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    shards: ShardConfig = dataclasses.field(default_factory=ShardConfig)

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise UsageError(f"--minutes: expected more than 0, got {self.minutes}")
        for name, value in (("--workers", self.workers), ("--ray", self.ray)):
            if value is not None and not self.prompts:
                raise UsageError(f"{name}: needs --prompts, whose answers it writes")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers: expected at least 1, got {self.workers}")
        if self.layers is not None and self.layers < 1:
            raise UsageError(f"--layers: expected at least 1, got {self.layers}")
        if self.resume and self.start is not None:
            raise UsageError(
                "--resume continues the run in --out; it cannot be combined with --start"
            )
        if not self.resume and (self.out / CHECKPOINT).exists():
            raise UsageError(
                f"--out {self.out}: holds a run already; add --resume to continue it, or choose "
                "another folder"
            )
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out}: exists and is no folder")
        taken = [n for n in ("config.json", WEIGHTS_FILE) if (self.out / n).exists()]
        if taken and not (self.out / CHECKPOINT).exists():
            raise UsageError(
                f"--out {self.out}: holds a {taken[0]} that is no run's, which training would "
                "replace; choose an empty or new folder"
            )


class WallClock:
    """``minutes`` from when the command began, less ``reserve`` seconds for what comes after the
    last step."""

    def __init__(self, begun: float, minutes: float) -> None:
        self._begun, self._seconds = begun, minutes * 60
        self.reserve = 0.0

    def share(self) -> float:
        return min(1.0, 1.0 - self.left() / self._seconds)

    def left(self) -> float:
        return self._begun + self._seconds - self.reserve - time.perf_counter()


class TrainingRun:
    """A run with all that it needs; ``begun`` (``time.perf_counter``): when its minutes began, by
    default now."""

    def __init__(
        self,
        config: RunConfig,
        progress: ProgressCallback = ignore_progress,
        begun: float | None = None,
    ) -> None:
        begun = time.perf_counter() if begun is None else begun
        self.config = config
        self.clock = None if config.minutes is None else WallClock(begun, config.minutes)
        self.trainer, held, self._names = _prepare(config, progress)
        progress(LoadProgress("the target answers what the drafter is scored on"))
        started = time.perf_counter()
        self._held = held()
        # Scoring takes about as long as making what is scored; then it is measured.
        self._reserve(time.perf_counter() - started)

    def _reserve(self, seconds: float) -> None:
        if self.clock is not None:
            self.clock.reserve = seconds

    def steps(self) -> Iterator[TrainProgress]:
        """Train, yielding progress after every step; every ``score_every`` steps and at the end
        with the held-out score. Checkpoint and drafter are saved every ``save_every`` steps, every
        two minutes and at the end, also when the caller stops early."""
        try:
            for state in self.trainer.run(self.clock):
                if state.step % self.config.score_every == 0 or state.last:
                    state = dataclasses.replace(state, score=self.score())
                yield state
        finally:
            self.trainer.save()
            if self.trainer.maker.answers is not None:
                self.trainer.maker.answers.close()

    def score(self) -> HeldOutScore | None:
        """Of the drafter as it is now; None where nothing was held out."""
        started, trainer = time.perf_counter(), self.trainer
        found = held_out_score(
            trainer.module,
            self._held,
            trainer.maker.teacher.head,
            trainer.embedding,
            trainer.norm,
            trainer.maker.columns,
            self._names,
        )
        self._reserve(time.perf_counter() - started)
        return found


def train(
    config: RunConfig, progress: ProgressCallback = ignore_progress
) -> Iterator[TrainProgress]:
    """``TrainingRun.steps`` of a new run."""
    yield from TrainingRun(config, progress).steps()


def _prepare(
    config: RunConfig, progress: ProgressCallback
) -> tuple[Trainer, Callable[[], list[HeldOut]], list[str]]:
    """(trainer, what makes the held-out text, the names of the corpus' groups)."""
    if config.resume:
        config = _as_begun(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    place = choose_device(config.device)
    kind = choose_dtype(config.dtype, place)
    if kind == torch.float16:
        raise UsageError(
            "--dtype: expected bfloat16 or float32 to train in, got float16, in which small "
            "gradients vanish; the drafter will run in every dtype"
        )
    source = resolve_model(config.model)
    folder = model_folder(source, kind, progress)
    target = load_transformers(folder, source.name, kind, place)
    tokenizer = load_tokenizer(folder)
    progress(LoadProgress("reading the corpus"))
    corpus = asked = _encode(config.corpus, tokenizer)
    teacher = Teacher(target)
    batches: list[PromptBatch] = []
    answers: Answers | None = None
    if config.prompts:
        asked = _encode(config.prompts, tokenizer, whole=True)
        longest = min(MAX_PROMPTED_TOKENS, teacher.max_length)
        batches = prompt_batches(
            asked.texts,
            asked.numbers(asked.groups),
            config.shards.tokens,
            longest,
            config.shards.seed,
        )
        batches = growing(batches, config.shards.first)
        made_by = f"{target.head_hash()}:{kind}:{config.shards.seed}"
        answers = Answers(batches, config.out, tokenizer.eos_ids, made_by)
        if config.workers is not None or config.ray is not None:
            batches, answers = answers.write(_writers(config, kind), progress), None
    maker = ShardMaker(
        teacher,
        corpus.texts,
        corpus.numbers(corpus.groups),
        config.shards,
        config.out / "shards",
        batches,
        tokenizer.eos_ids,
        answers,
    )
    maker.claim()
    progress(LoadProgress("the target reads or writes the first text"))
    module = _module(config, target, maker)
    trainer = Trainer(module, maker, config.train, config.out)
    if config.resume:
        trainer.resume()
    short = config.minutes is not None and config.minutes < SHORT_MINUTES
    held = partial(
        _held_out,
        maker,
        asked.held,
        asked.numbers(asked.held_groups),
        bool(config.prompts),
        HELD_OUT_SEQUENCES // 4 if short else HELD_OUT_SEQUENCES,
    )
    return trainer, held, asked.names


def _writers(config: RunConfig, kind: torch.dtype) -> Writers:
    """In the dtype that features are read in: the same target."""
    dtype = str(kind).removeprefix("torch.")
    seed, workers = config.shards.seed, config.workers or 1
    return Writers(config.model, dtype, config.device, config.threads, seed, workers, config.ray)


def _as_begun(config: RunConfig) -> RunConfig:
    """With shards of equal size where the run to resume was begun with such."""
    if "first=" in Trainer.saved_shards(config.out):
        return config
    return dataclasses.replace(config, shards=dataclasses.replace(config.shards, first=None))


def _encode(corpus: Sequence[str], tokenizer: TextTokenizer, whole: bool = False) -> EncodedTexts:
    found = encode_texts(
        corpus, tokenizer.encode, tokenizer.bos_id, held_out=HELD_OUT_TEXTS, whole=whole
    )
    if not found.texts:
        raise DynaSpecError("--corpus: no text to train on; add files with more text")
    return found


def _held_out(
    maker: ShardMaker, texts: list[Tensor], groups: list[int], whole: bool, count: int
) -> list[HeldOut]:
    """``count`` greedy continuations of held-out beginnings, or of ``whole`` prompts of the lengths
    that most have: what decoding will look like."""
    new, teacher = 80, maker.teacher
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(texts):
        length = ids.numel() if whole else min(ids.numel(), 48)
        if length + new <= teacher.max_length and (length == 48 or whole):
            by_length[length].append(index)
    device = teacher.head.device
    held: list[HeldOut] = []
    left = count
    for length, members in sorted(by_length.items(), key=lambda item: (-len(item[1]), item[0])):
        chosen = members[:left]
        left -= len(chosen)
        if not chosen:
            break
        prompts = torch.stack([texts[i][:length] for i in chosen]).long().to(device)
        zero = torch.zeros(len(chosen), device=device)
        tokens, features = teacher.write(
            prompts, new, zero, torch.Generator(device=device), maker.columns.to(device)
        )
        kinds = torch.tensor([groups[i] for i in chosen])
        shard = Shard(tokens.cpu(), features, length, kinds)
        held.append(HeldOut.of(shard, teacher.head, teacher.backbone.norm, maker.ends))
    return held


def _module(config: RunConfig, target: Any, maker: ShardMaker) -> Any:
    """A module initialised from the target, or from an earlier drafter (``start``); the resumed
    run's weights come from its checkpoint."""
    if config.resume:
        return from_target(_continued(config, Trainer.saved_config(config.out)), target)
    if config.start is not None:
        earlier = load_eagle(DrafterFiles(config.start, str(config.start)), target)
        module = from_target(_continued(config, earlier.config), target)
        from safetensors.torch import load_file

        with torch.no_grad():
            for name, tensor in load_file(config.start / WEIGHTS_FILE).items():
                module.get_parameter(name).copy_(tensor.float())
        return module
    features = maker.get(0).features.float()
    # Features are measured in the root mean square of their median dimension: some families have a
    # few huge ones.
    scale = float(features.pow(2).mean((0, 1)).sqrt().median())
    shape = drafter_config(target, config.layers or 1, scale, config.engine == VLLM)
    return from_target(shape, target)


def _continued(config: RunConfig, drafter: DrafterConfig) -> DrafterConfig:
    if config.layers not in (None, drafter.num_layers):
        raise UsageError(
            f"--layers: the drafter to go on from has {drafter.num_layers}, got {config.layers}; "
            "leave --layers out"
        )
    engine = VLLM if drafter.normed_features else OWN
    if config.engine not in (None, engine):
        raise UsageError(
            f"--for: the drafter to go on from is for {engine}, got {config.engine}; leave --for "
            "out, or begin anew"
        )
    return drafter
