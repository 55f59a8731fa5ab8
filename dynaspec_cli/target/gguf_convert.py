"""GGUF -> a ``transformers`` model folder (safetensors, config, tokenizer.json), by
``transformers``' own reader.

Weights are de-quantised to float32 first and rounded once to the wanted dtype, so a float32 folder
holds exactly what ``from_pretrained(..., gguf_file=...)`` yields.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.cache_dir import write_text
from dynaspec_cli.target.events import LoadProgress, ProgressCallback
from dynaspec_cli.target.quiet import quiet_transformers
from dynaspec_cli.target.tokenizer import FAST_MARK

PROBES = (
    "The capital of France is",
    "  def f(x):\n\treturn x**2\n\n",
    "naïve 東京 😀 مرحبا\u200d",
    "a" * 40 + " 12345",
)
"""Texts on which the bare tokenizer.json must agree with the full tokenizer before it is used
alone."""


def convert_gguf(
    source: Path, folder: Path, dtype: torch.dtype, name: str, progress: ProgressCallback
) -> str:
    """Write the model of ``source`` to the existing ``folder``; returns the head's hash, taken
    before the weights are rounded (float16 rounds away what the hash in bf16 reads).

    Raises ``DynaSpecError`` for architectures that ``transformers`` cannot read and for models that
    are no causal language model; ``OSError`` where writing fails.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, file = str(source.parent), source.name
    with quiet_transformers(), _one_reader(), _bars(progress, "de-quantising weights"):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                place,
                gguf_file=file,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DynaSpecError(
                f"{name}: transformers cannot read this GGUF file as a causal language model "
                f"({_first_line(error)})"
            ) from error
        head = model.get_output_embeddings() or model.get_input_embeddings()
        digest = head_hash(head.weight)
        progress(LoadProgress("writing weights"))
        if dtype != torch.float32:
            model = model.to(dtype)
        model.config.dtype = dtype
        model.save_pretrained(folder)
        del model, head
        progress(LoadProgress("converting the tokenizer"))
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(place, gguf_file=file)
        except Exception as error:
            raise DynaSpecError(
                f"{name}: transformers cannot read the tokenizer of this GGUF file "
                f"({_first_line(error)})"
            ) from error
        tokenizer.save_pretrained(folder)
        if _bare_tokenizer_agrees(tokenizer, folder):
            write_text(folder / FAST_MARK, '{"agrees": true}\n')
    return digest


def _bare_tokenizer_agrees(tokenizer: Any, folder: Path) -> bool:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return False
    bare = Tokenizer.from_file(str(path))
    return all(bare.encode(text).ids == list(tokenizer(text)["input_ids"]) for text in PROBES)


@contextlib.contextmanager
def _one_reader() -> Iterator[None]:
    """Parse the file's header once: ``transformers`` does so for the config, the weights and the
    tokenizer, and a vocabulary of 262,144 tokens takes many seconds each time."""
    module: Any = importlib.import_module("gguf")
    original = module.GGUFReader
    module.GGUFReader = functools.cache(original)
    try:
        yield
    finally:
        module.GGUFReader = original


@contextlib.contextmanager
def _bars(progress: ProgressCallback, stage: str) -> Iterator[None]:
    """Turn the reader's own progress bar into events, where it has one."""
    from transformers import modeling_gguf_pytorch_utils as reader

    progress(LoadProgress(stage, 0.0))
    original: Callable[..., Any] | None = getattr(reader, "tqdm", None)

    def watch(
        items: Iterable[Any], *args: Any, total: int | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        entries = list(items)
        for done, entry in enumerate(entries):
            yield entry
            progress(LoadProgress(stage, (done + 1) / len(entries)))

    if original is not None:
        reader.tqdm = watch
    try:
        yield
    finally:
        if original is not None:
            reader.tqdm = original


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
