"""Puts the facts together; what cannot be found out is said, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.doctor import head_share, memory
from dynaspec_cli.doctor.drafter import inspect_drafter
from dynaspec_cli.doctor.system import available_memory, system_facts
from dynaspec_cli.engine.events import SCHEMA
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.shortlist.registry import DEFAULT, DEFAULT_SIZES
from dynaspec_cli.target import gguf_cache
from dynaspec_cli.target.load import choose_device, choose_dtype, model_folder
from dynaspec_cli.target.resolve import resolve_model

if TYPE_CHECKING:
    from dynaspec_cli.engine.api import Engine


def examine(
    *,
    model: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    drafter: str,
    context: int,
    measure: bool,
    progress: Callable[[Any], None],
) -> dict[str, Any]:
    """All facts. An explicit ``model`` or ``drafter`` that cannot be read raises ``DynaSpecError``;
    a missing default model is a fact."""
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if threads is not None:
        torch.set_num_threads(threads)
    facts: dict[str, Any] = {"schema": SCHEMA, "system": system_facts()}
    facts["system"]["device"] = str(place)
    facts["system"]["dtype"] = str(kind).removeprefix("torch.")
    folder = None if drafter in ("auto", "none") else Path(drafter).expanduser()
    facts["drafter"] = None if folder is None else inspect_drafter(folder)
    try:
        source = resolve_model(model)
    except DynaSpecError as error:
        if model is not None:
            raise
        return {**facts, "model": None, "memory": None, "head_share": None, "note": str(error)}
    facts["model"] = source.name
    ready = None if source.gguf is None else gguf_cache.found(source.gguf, kind, progress)
    if source.gguf is not None and ready is None and not measure:
        dtype_name = facts["system"]["dtype"]
        facts["memory"] = memory.gguf_estimate(source, dtype_name, available_memory(str(place)))
        return {**facts, "head_share": None, "note": "not measured (--no-measure)"}
    model_path = ready or model_folder(source, kind, progress)
    return {**facts, **_model_facts(model_path, model, facts, drafter, context, measure, progress)}


def _model_facts(
    folder: Path,
    model: str | None,
    facts: dict[str, Any],
    drafter: str,
    context: int,
    measure: bool,
    progress: Callable[[Any], None],
) -> dict[str, Any]:
    """``memory``, ``head_share`` and, for ``--drafter auto``, ``drafter``."""
    from dynaspec_cli.drafters.load import packaged_drafter

    system = facts["system"]
    available = available_memory(system["device"])  # before anything is loaded

    def needed(drafter_bytes: int) -> dict[str, Any]:
        return memory.estimate(
            folder,
            system["dtype"],
            context=context,
            tree_size=TreeConfig().size,
            drafter_bytes=drafter_bytes,
            reordered_head=drafter_bytes > 0,
            available=available,
        )

    explicit = None if facts["drafter"] is None else Path(facts["drafter"]["folder"])
    out: dict[str, Any] = {"memory": needed(_file_bytes(explicit)), "head_share": None}
    if not measure:
        return {**out, "note": "not measured (--no-measure)"}
    if out["memory"]["fits"] is False:
        return {**out, "note": "not measured: the model does not fit in the memory available"}
    try:
        engine = _load(model, system, drafter, progress)
    except DynaSpecError as error:
        if explicit is None:
            raise
        # A drafter of another format or target is still worth a verdict; it cannot be timed.
        engine = _load(model, system, "none", progress)
        out["note"] = f"the drafter was not timed: {error}"
    if explicit is None:
        shipped = packaged_drafter(engine.target) if drafter == "auto" else None
        out["drafter"] = None if shipped is None else inspect_drafter(shipped)
        out["memory"] = needed(_file_bytes(shipped))
    layers = int(memory.read_model_config(folder)["num_hidden_layers"])
    out["head_share"] = head_share.measure(
        engine.target, engine.drafter, layers, DEFAULT_SIZES[DEFAULT]
    )
    return out


def _load(
    model: str | None, system: dict[str, Any], drafter: str, progress: Callable[[Any], None]
) -> Engine:
    from dynaspec_cli.engine.api import Engine

    return Engine.load(
        model=model,
        dtype=system["dtype"],
        device=system["device"],
        drafter=drafter,
        progress=progress,
    )


def _file_bytes(folder: Path | None) -> int:
    from dynaspec_cli.drafters.eagle import WEIGHTS_FILE

    if folder is None:
        return 0
    whole = folder / WEIGHTS_FILE  # beside it a run keeps its optimiser's state
    parts = [whole] if whole.is_file() else folder.glob("*.safetensors")
    return sum(path.stat().st_size for path in parts)
