"""From a ``--model`` value to a target and its tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.ops.pages import give_back
from dynaspec_cli.protocols import Target
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.events import LoadProgress, ProgressCallback, ignore_progress
from dynaspec_cli.target.gguf_cache import converted, known_head_hash
from dynaspec_cli.target.gguf_native import open_native
from dynaspec_cli.target.gguf_tokenizer import begun_tokenizer
from dynaspec_cli.target.kind import TargetRequest
from dynaspec_cli.target.native_spec import native_spec, read_config
from dynaspec_cli.target.native_target import load_native, load_packed
from dynaspec_cli.target.pretrained import pretrained
from dynaspec_cli.target.registry import TARGETS
from dynaspec_cli.target.resolve import ModelSource, resolve_model
from dynaspec_cli.target.sharded.launch import Launch, launched
from dynaspec_cli.target.static.target import load_static
from dynaspec_cli.target.tokenizer import TextTokenizer, load_tokenizer
from dynaspec_cli.target.weights import HEAD_NAMES, WeightFiles

PACKED = "packed"
WIDENING = ("cpu-avx2", "cpu-avx_vnni", "cpu-avx512", "cpu-avx512_bf16")
"""Levels whose kernels read bfloat16 as fast as memory gives it."""
DEVICE_MAP = "map"
"""What ``--device-map auto`` makes of ``--device``."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str | ModelSource | None = None,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Target, TextTokenizer]:
    """Load a target (``--model``, ``--dtype``, ``--device``, ``--threads``) and its tokenizer.

    Raises ``DynaSpecError`` with one line for everything that can be wrong with the model,
    ``UsageError`` for options.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    if (launch := launched()) is not None:
        return load_sharded(launch, resolve_model(model), dtype, device, progress)
    if device == DEVICE_MAP:
        return load_mapped(resolve_model(model), dtype, progress)
    place = choose_device(device)
    kind = choose_dtype("auto" if dtype == PACKED else dtype, place)
    source = resolve_model(model)
    kind = settled_dtype(kind, dtype, source, place)
    return load_source(source, dtype, kind, place, progress)


def load_mapped(
    source: ModelSource, dtype: str, progress: ProgressCallback = ignore_progress
) -> tuple[Any, TextTokenizer]:
    """``--device-map auto``: a model over all GPUs, and its tokenizer."""
    from dynaspec_cli.target.device_map import load_over_devices

    if dtype == PACKED:
        raise UsageError("--dtype packed: not with --device-map auto; take --dtype auto")
    kind = choose_dtype(dtype, choose_device("auto"))
    folder = model_folder(source, kind, progress)
    progress(LoadProgress("loading weights"))
    target = load_over_devices(folder, source.name, kind, stored_head_hash(folder))
    progress(LoadProgress("loading the tokenizer"))
    return target, load_tokenizer(folder)


def load_sharded(
    launch: Launch,
    source: ModelSource,
    dtype: str,
    device: str,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Any, TextTokenizer]:
    """At rank 0 of torchrun: a model split over all ranks, and its tokenizer."""
    from dynaspec_cli.target.sharded.load import lead, place_of

    if source.folder is None:
        raise UsageError(
            f"--model {source.name}: a GGUF file runs in one process; under torchrun give a model "
            "folder or a hub name of transformers' own format"
        )
    place = place_of(launch, device)
    kind = choose_dtype(dtype, place)
    progress(LoadProgress(f"loading weights in {launch.world} processes"))
    known = stored_head_hash(source.folder)
    target = lead(launch, source.folder, source.name, kind, place, known)
    progress(LoadProgress("loading the tokenizer"))
    return target, load_tokenizer(source.folder)


def load_source(
    source: ModelSource,
    dtype: str,
    kind: torch.dtype,
    place: torch.device,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Any, TextTokenizer]:
    """A model that was found, and its tokenizer. ``dtype`` as the option gives it, ``kind`` that of
    what is not packed."""
    packed = takes_packed(dtype, source, place)
    if source.gguf is not None and place.type == "cpu":
        found = load_gguf(source.gguf, source.name, kind, packed, progress)
        if found is not None:
            return found
        if dtype == PACKED:
            raise DynaSpecError(
                f"{source.name}: --dtype packed: no native layers for this model; take --dtype auto"
            )
    folder = model_folder(source, kind, progress)
    progress(LoadProgress("loading weights"))
    target = load_target(folder, source.name, kind, place, progress)
    progress(LoadProgress("loading the tokenizer"))
    return target, load_tokenizer(folder)


def takes_packed(dtype: str, source: ModelSource, device: torch.device) -> bool:
    """Does the target multiply its file's own blocks? A GGUF file does on a CPU, unless a dtype is
    asked for. Raises ``UsageError`` where it is asked for and cannot be."""
    able = source.gguf is not None and device.type == "cpu" and EXTENSION.module is not None
    if dtype == PACKED and not able:
        lacks = (
            "a GGUF file"
            if source.gguf is None
            else "--device cpu"
            if device.type != "cpu"
            else f"the compiled extension ({EXTENSION.reason})"
        )
        raise UsageError(f"--dtype packed: needs {lacks}; take --dtype auto")
    return able and dtype in (PACKED, "auto")


def load_gguf(
    source: Path | ChunkedFile,
    name: str,
    dtype: torch.dtype,
    packed: bool,
    progress: ProgressCallback,
) -> tuple[Target, TextTokenizer] | None:
    """A GGUF file of a family that we read ourselves as a native target; None for other files.
    ``packed``: on the file's own blocks."""
    progress(LoadProgress("reading the file's header"))
    found = open_native(source)
    if found is None:
        return None
    # Before the weights are packed: what building a tokenizer leaves behind is given back first.
    progress(LoadProgress("loading the tokenizer"))
    begun = begun_tokenizer(source)
    tokenizer = found.tokenizer() if begun is None else begun.result()
    give_back()
    found.weights.report = lambda share: progress(LoadProgress("loading weights", share))
    if packed:
        return load_packed(found.weights, name, found.spec, dtype), tokenizer
    known = found.weights.head_hash()
    return load_native(found.weights, name, found.spec, dtype, known), tokenizer


def choose_device(device: str) -> torch.device:
    """The torch device of a ``--device`` value; "auto" is CUDA where there is one."""
    if device == DEVICE_MAP:
        raise UsageError("--device-map: for generate, chat, serve and bench; leave it out here")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:N, got {device!r}") from error
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (place.index or 0) >= count:
            raise DynaSpecError(
                f"--device {device}: this PyTorch sees {count} CUDA devices; use --device cpu"
            )
    return place


def folder_runs_native(source: ModelSource, device: torch.device) -> bool:
    """Is it a model folder whose layers and head the compiled CPU kernels run?"""
    return source.folder is not None and device.type == "cpu" and _has_layers(source.folder)


def captures(source: ModelSource, device: torch.device) -> bool:
    """Are its passes captured as CUDA graphs (target/static/)?"""
    if device.type != "cuda":
        return False
    if source.gguf is not None:
        return open_native(source.gguf) is not None
    return source.folder is not None and _has_layers(source.folder)


def _has_layers(folder: Path) -> bool:
    """Has this project layers of its own for a model folder?"""
    try:
        config = read_config(folder)
    except DynaSpecError:
        return False  # another package's kind may run it; if none does, loading says why
    return not isinstance(native_spec(config), str)


def choose_dtype(dtype: str, device: torch.device, native: bool = False) -> torch.dtype:
    """The dtype of a ``--dtype`` value; "auto" is bfloat16 on CUDA, on CPUs that multiply it, and
    for ``native`` layers on CPUs with AVX2, which read half the bytes and widen them for nothing;
    float32 elsewhere."""
    if dtype == "auto":
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        fast = fast or (native and EXTENSION.name in WIDENING)
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"--dtype: expected auto, {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def settled_dtype(
    kind: torch.dtype, dtype: str, source: ModelSource, device: torch.device
) -> torch.dtype:
    """``kind``, chosen before the model was found, or what "auto" is for this one: its config is
    read only where the choice hangs on it."""
    if dtype != "auto" or kind == torch.bfloat16 or not folder_runs_native(source, device):
        return kind
    return choose_dtype(dtype, device, native=True)


def model_folder(source: ModelSource, dtype: torch.dtype, progress: ProgressCallback) -> Path:
    """The folder with config, safetensors and tokenizer: the source's own, or the converted GGUF
    file's."""
    if source.gguf is not None:
        return converted(source.gguf, source.name, dtype, progress)
    if source.folder is None:
        raise DynaSpecError(f"{source.name}: neither a folder nor a GGUF file")
    return source.folder


def load_target(
    folder: Path,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    progress: ProgressCallback = ignore_progress,
) -> Target:
    """The target of the first kind (registry.py) that takes the folder."""
    request = TargetRequest(folder, name, dtype, device, progress=progress)
    for kind in TARGETS.others_first():
        found = TARGETS.load(kind)(request)
        if not isinstance(found, str):
            return found
        request = replace(request, declined={**request.declined, kind: found})
    raise DynaSpecError(f"{name}: no kind of target runs it ({request.declined})")


def _weights(folder: Path) -> tuple[WeightFiles, str]:
    """A folder's weights and the hash of its head, read where none is kept beside it."""
    files = WeightFiles(folder)
    return files, known_head_hash(folder) or head_hash(files.head())


def native_target(request: TargetRequest) -> Target | str:
    """Our own layers, where they can run the model."""
    spec = native_spec(read_config(request.folder))
    if isinstance(spec, str):
        return spec
    if request.device.type != "cpu":
        return "the native layers run on a CPU"
    files, known = _weights(request.folder)
    return load_native(files, request.name, spec, request.dtype, known)


def static_target(request: TargetRequest) -> Target | str:
    """Our own layers in fixed shapes, on CUDA."""
    spec = native_spec(read_config(request.folder))
    if isinstance(spec, str):
        return spec
    if request.device.type != "cuda":
        return "fixed shapes are for CUDA"
    files, known = _weights(request.folder)
    return load_static(
        files, request.name, spec, request.dtype, request.device, known, request.progress
    )


def transformers_target(request: TargetRequest) -> Target:
    """A model of ``transformers``; on a CPU its ``kernels`` says why it is not native."""
    why = request.declined.get("native")
    kernels = f"transformers ({why})" if why and request.device.type == "cpu" else "transformers"
    return load_transformers(request.folder, request.name, request.dtype, request.device, kernels)


def load_transformers(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device, kernels: str = "transformers"
) -> Any:
    """The model of ``folder`` as a ``TransformersTarget``."""
    from dynaspec_cli.target.transformers_target import TransformersTarget

    model = pretrained(folder, name, dtype=dtype)
    # float16 rounds away what the hash reads; the others keep it.
    known = stored_head_hash(folder) if dtype == torch.float16 else None
    return TransformersTarget(model.to(device), name, kernels, known)


def stored_head_hash(folder: Path) -> str | None:
    """The hash of the head as the folder stores it; None where it stores none under a name that is
    known."""
    known = known_head_hash(folder)
    if known is not None:
        return known
    files = WeightFiles(folder)
    return head_hash(files.head()) if any(name in files for name in HEAD_NAMES) else None
