"""From a ``--model`` value to a target and its tokenizer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.protocols import Target
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.events import LoadProgress, ProgressCallback, ignore_progress
from dynaspec_cli.target.gguf_cache import converted, known_head_hash
from dynaspec_cli.target.gguf_native import open_native
from dynaspec_cli.target.gguf_tokenizer import begun_tokenizer
from dynaspec_cli.target.native_spec import native_spec, read_config
from dynaspec_cli.target.native_target import load_native, load_packed
from dynaspec_cli.target.quiet import quiet_transformers
from dynaspec_cli.target.resolve import ModelSource, resolve_model
from dynaspec_cli.target.static.target import load_static
from dynaspec_cli.target.tokenizer import TextTokenizer, load_tokenizer
from dynaspec_cli.target.weights import HEAD_NAMES, WeightFiles

PACKED = "packed"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Target, TextTokenizer]:
    """Load a target (``--model``, ``--dtype``, ``--device``, ``--threads``) and its tokenizer.

    Raises ``DynaSpecError`` with one line for everything that can be wrong with the model,
    ``UsageError`` for options.
    """
    place = choose_device(device)
    kind = choose_dtype("auto" if dtype == PACKED else dtype, place)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    return load_source(resolve_model(model), dtype, kind, place, progress)


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
    # Beside the weights: building a tokenizer leaves the second core to them.
    with ThreadPoolExecutor(1) as other:
        tokenizer = begun_tokenizer(source) or other.submit(found.tokenizer)
        found.weights.report = lambda share: progress(LoadProgress("loading weights", share))
        known = found.weights.head_hash()
        build = load_packed if packed else load_native
        target = build(found.weights, name, found.spec, dtype, known)
        progress(LoadProgress("loading the tokenizer"))
        return target, tokenizer.result()


def choose_device(device: str) -> torch.device:
    """The torch device of a ``--device`` value; "auto" is CUDA where there is one."""
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


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of a ``--dtype`` value; "auto" is bfloat16 on CUDA and on CPUs that multiply it,
    float32 elsewhere."""
    if dtype == "auto":
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"--dtype: expected auto, {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


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
    """The native target (on CUDA the static one) where it can run the model, else the
    ``transformers`` one, whose ``kernels`` says why."""
    config = read_config(folder)
    spec = native_spec(config)
    if isinstance(spec, str):
        return load_transformers(folder, name, dtype, device, f"transformers ({spec})")
    files = WeightFiles(folder)
    known = known_head_hash(folder) or head_hash(files.head())
    if device.type == "cuda":
        return load_static(files, name, spec, dtype, device, known, progress)
    return load_native(files, name, spec, dtype, known)


def load_transformers(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device, kernels: str = "transformers"
) -> Any:
    """The model of ``folder`` as a ``TransformersTarget``."""
    from transformers import AutoModelForCausalLM

    from dynaspec_cli.target.transformers_target import TransformersTarget

    model: Any = None
    info: dict[str, Any] = {}
    for attention in ("sdpa", "eager"):
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
        options.update(use_safetensors=True, output_loading_info=True)
        try:
            with quiet_transformers():
                loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
            model, info = loaded
            break
        except Exception as error:
            if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise DynaSpecError(
                f"{name}: transformers cannot load {folder} as a causal language model ({text[0]})"
            ) from error
    if missing := sorted(info["missing_keys"]):
        raise DynaSpecError(
            f"{folder}: the weights lack {missing[0]!r} and {len(missing) - 1} more; the folder "
            "does not fit its config.json"
        )
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
