"""One process over several devices: accelerate places layers on them, ``transformers`` runs them
one after the other. For a model that one GPU cannot hold; tensor parallelism (target/sharded)
computes on all of them at once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.pretrained import pretrained
from dynaspec_cli.target.transformers_target import TransformersTarget


def load_over_devices(
    folder: Path, name: str, dtype: torch.dtype, known_hash: str | None
) -> TransformersTarget:
    """The model of ``folder`` over all GPUs, or in main memory where there are none. Raises
    DynaSpecError without accelerate, and where the GPUs cannot hold it."""
    if find_spec("accelerate") is None:
        raise DynaSpecError("--device-map auto needs accelerate; pip install accelerate")
    model = pretrained(folder, name, dtype=dtype, device_map="auto")
    outside = [p for p, t in model.named_parameters() if t.device.type == "meta"]
    if outside:
        raise DynaSpecError(
            f"--device-map auto: the GPUs have no room for {len(outside)} of the tensors of {name} "
            f"({outside[0]}); take a smaller model or --dtype, or torchrun over more of them"
        )
    devices = sorted({str(t.device) for t in model.parameters()})
    return TransformersTarget(
        model, name, f"transformers (device map: {', '.join(devices)})", known_hash
    )
