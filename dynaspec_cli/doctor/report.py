"""Puts the facts together; what cannot be found out is said, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from dynaspec_cli.doctor import head_share, memory
from dynaspec_cli.doctor.drafter import drafter_path, inspect_drafter
from dynaspec_cli.doctor.needs import Needs, StoredHead
from dynaspec_cli.doctor.system import available_memory, system_facts
from dynaspec_cli.engine.events import SCHEMA
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.shortlist.registry import DEFAULT, DEFAULT_SIZES
from dynaspec_cli.target import gguf_cache
from dynaspec_cli.target.gguf_native import open_native
from dynaspec_cli.target.load import (
    PACKED,
    captures,
    choose_device,
    choose_dtype,
    model_folder,
    settled_dtype,
    stored_head_hash,
    takes_packed,
)
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
    drafter_options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All facts. An explicit ``model`` or ``drafter`` that cannot be read raises ``DynaSpecError``;
    a missing default model is a fact."""
    place = choose_device(device)
    kind = choose_dtype("auto" if dtype == PACKED else dtype, place)
    if threads is not None:
        torch.set_num_threads(threads)
    facts: dict[str, Any] = {"schema": SCHEMA, "system": system_facts(place)}
    facts["system"]["device"] = str(place)
    facts["system"]["dtype"] = str(kind).removeprefix("torch.")
    given = drafter_path(drafter)
    facts["drafter"] = None if given is None else inspect_drafter(given, drafter_options)
    try:
        source = resolve_model(model)
    except DynaSpecError as error:
        if model is not None:
            raise
        return {**facts, "model": None, "memory": None, "head_share": None, "note": str(error)}
    facts["model"] = source.name
    kind = settled_dtype(kind, dtype, source, place)
    facts["system"]["dtype"] = str(kind).removeprefix("torch.")
    native = open_native(source.gguf) if source.gguf is not None and place.type == "cpu" else None
    path = source.folder
    if source.gguf is not None and native is None:
        path = gguf_cache.found(source.gguf, kind, progress)
        if path is None and measure:
            path = model_folder(source, kind, progress)

    def load(named: str) -> Engine:
        options = drafter_options if named == drafter else None
        return _load(model, facts["system"], named, progress, options)

    # What is free once a conversion has given its memory back, and before anything is loaded.
    packed = native is not None and takes_packed(dtype, source, place)
    needs = Needs(
        str(kind).removeprefix("torch."),
        context,
        available_memory(str(place)),
        drafter,
        graphs=captures(source, place),
        packed=packed,
        gathers=place.type == "cpu",
    )
    if packed:
        facts["system"]["dtype"] = PACKED
    if native is not None and source.gguf is not None:
        sizes = memory.gguf_sizes(source.gguf)
        if isinstance(sizes, int):
            raise DynaSpecError(f"{source.name}: the file does not tell its shape")
        head = StoredHead(sizes, native.weights.head_hash())
    elif path is not None:
        sizes = memory.folder_sizes(path)
        head = StoredHead(sizes, stored_head_hash(path))
    else:
        facts["memory"] = needs.of_gguf(source)
        return {**facts, "head_share": None, "note": "not measured (--no-measure)"}
    return {**facts, **_model_facts(head, load, facts, needs, measure)}


def _model_facts(
    head: StoredHead,
    load: Callable[[str], Engine],
    facts: dict[str, Any],
    needs: Needs,
    measure: bool,
) -> dict[str, Any]:
    """``memory``, ``head_share`` and, for ``--drafter auto``, ``drafter``. ``load``: the engine
    with a drafter."""
    sizes = head.sizes
    out: dict[str, Any] = {**needs.of_head(sizes, head), "head_share": None}
    if not measure:
        return {**out, "note": "not measured (--no-measure)"}
    if out["memory"]["fits"] is False:
        return {**out, "note": "not measured: the model does not fit in the memory available"}
    try:
        engine = load(needs.drafter)
    except DynaSpecError as error:
        if facts["drafter"] is None:
            raise
        # A drafter of another format or target is still worth a verdict; it cannot be timed.
        engine = load("none")
        out["note"] = f"the drafter was not timed: {error}"
    out |= needs.of_head(sizes, engine.target)
    out["head_share"] = head_share.measure(
        engine.target, engine.drafter, sizes.num_layers, DEFAULT_SIZES[DEFAULT]
    )
    return out


def _load(
    model: str | None,
    system: dict[str, Any],
    drafter: str,
    progress: Callable[[Any], None],
    drafter_options: Mapping[str, str] | None,
) -> Engine:
    from dynaspec_cli.engine.api import Engine

    return Engine.load(
        model=model,
        dtype=system["dtype"],
        device=system["device"],
        drafter=drafter,
        progress=progress,
        drafter_options=drafter_options,
    )
