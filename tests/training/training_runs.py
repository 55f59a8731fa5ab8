"""Runs of a few steps on a tiny model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from dynaspec_cli.training.run import RunConfig
from dynaspec_cli.training.shards import ShardConfig
from dynaspec_cli.training.trainer import TrainConfig


def make_run(model: Path, corpus: Path, out: Path, steps: int, **changes) -> RunConfig:
    schedule = TrainConfig(
        steps=steps,
        batch_tokens=64,
        unroll=2,
        warmup=2,
        save_every=1000,
        decay_share=1e-9,
        window=3,
    )
    settings = {
        "model": str(model),
        "corpus": (str(corpus),),
        "out": out,
        "dtype": "float32",
        "device": "cpu",
        "score_every": 1000,
        "train": schedule,
        "shards": ShardConfig(tokens=192, length=32, columns=300),
    }
    return RunConfig(**(settings | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v
        for k, v in load_file(folder / "checkpoint.safetensors").items()
        if k.startswith("weight.")
    }
