"""Loads a model for ``build-clusters`` and runs the build."""

from __future__ import annotations

import torch

from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Drafter
from dynaspec_cli.target.events import LoadProgress
from dynaspec_cli.target.load import choose_device, choose_dtype, load_transformers, model_folder
from dynaspec_cli.target.resolve import resolve_model
from dynaspec_cli.target.tokenizer import load_tokenizer
from dynaspec_cli.training.router_build import BuildConfig, BuildResult, Progress, build


def _predictor(value: str, drafter: Drafter | None) -> EagleDrafter | None:
    """The drafter whose hidden rows the router will read; None where ``value`` leaves the choice
    open and none ships."""
    if drafter is None or isinstance(drafter, EagleDrafter):
        return drafter
    if value == "auto":
        return None
    raise DynaSpecError(
        f"--drafter {drafter.name}: a router learns from what a drafter of train-drafter predicts, "
        "not from this kind; leave --drafter out, or give such a folder"
    )


def run(
    config: BuildConfig,
    model: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    progress: Progress,
    drafter: str = "auto",
) -> BuildResult:
    """Build the bundle of ``model``; ``drafter`` as in ``drafters.load``. See
    ``router_build.build``."""
    if threads is not None:
        torch.set_num_threads(threads)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    source = resolve_model(model)

    def loading(event: LoadProgress) -> None:
        progress(event.stage, event.fraction)

    folder = model_folder(source, kind, loading)
    progress("loading weights", None)
    target = load_transformers(folder, source.name, kind, place)
    tokenizer = load_tokenizer(folder)
    return build(
        config,
        target,
        tokenizer.encode,
        progress,
        _predictor(drafter, load_drafter(drafter, target, tokenizer)),
        tokenizer.eos_ids,
        tokenizer.bos_id,
    )
