"""GGUF -> a ``transformers`` model folder (safetensors, config, tokenizer.json), for what needs
one: CUDA, training, comparisons with ``transformers``.

Families that we read ourselves are written by our own reader; the others by ``transformers``',
and then every value of the file must have found its place. Weights are de-quantised to float32 and
rounded once to the wanted dtype.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.config import gguf_config
from dynaspec_cli.gguf_files.model import GgufModel
from dynaspec_cli.gguf_files.vocabulary import read_vocabulary
from dynaspec_cli.gguf_files.weights import GgufWeights
from dynaspec_cli.target.cache_dir import write_text
from dynaspec_cli.target.events import LoadProgress, ProgressCallback
from dynaspec_cli.target.gguf_tokenizer import special_texts, tokenizer_backend
from dynaspec_cli.target.quiet import quiet_transformers
from dynaspec_cli.target.tokenizer import FAST_MARK
from dynaspec_cli.target.weights import SINGLE

PROBES = (
    "The capital of France is",
    "  def f(x):\n\treturn x**2\n\n",
    "naïve 東京 😀 مرحبا\u200d",
    "a" * 40 + " 12345",
)
"""Texts on which the bare tokenizer.json must agree with the full tokenizer before it is used
alone."""


def convert_known(
    model: GgufModel, folder: Path, dtype: torch.dtype, progress: ProgressCallback
) -> str:
    """Write ``model`` to the existing ``folder``; returns the head's hash.

    Raises ``DynaSpecError`` for a file that holds what would not be used; ``OSError`` where writing
    fails.
    """
    from safetensors.torch import save_file

    vocabulary, found = read_vocabulary(model), gguf_config(model)
    stage = "de-quantising weights"
    weights = GgufWeights(
        model.tensors, found.slots, lambda share: progress(LoadProgress(stage, share))
    )
    # A folder holds Gemma's norms without the "+1" that the file's have.
    offset = 1.0 if found.config["model_type"].startswith("gemma") else 0.0
    tensors = {}
    for name in weights.names():
        if offset and name.endswith("norm.weight"):
            tensors[name] = (weights.tensor(name, torch.float32) - offset).to(dtype)
        else:
            tensors[name] = weights.tensor(name, dtype)
    if found.config["model_type"] == "llama" and found.config["attention_bias"]:
        # The switch of a Llama's config asks for a bias behind the attention as well.
        for layer in range(found.config["num_hidden_layers"]):
            zeros = torch.zeros(found.config["hidden_size"], dtype=dtype)
            tensors[f"model.layers.{layer}.self_attn.o_proj.bias"] = zeros
    progress(LoadProgress("writing weights"))
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    ids = vocabulary.ids
    special = {
        "bos_token_id": ids.get("bos"),
        "eos_token_id": list(vocabulary.end_ids) or None,
        "pad_token_id": ids.get("pad"),
    }
    _write_json(folder / "generation_config.json", special)
    named = {**found.config, **special, "dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", named)
    progress(LoadProgress("converting the tokenizer"))
    tokenizer_backend(vocabulary).save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **special_texts(vocabulary)},
    )
    if vocabulary.template is not None:
        write_text(folder / "chat_template.jinja", vocabulary.template)
    _write_json(folder / FAST_MARK, {"agrees": True})
    return weights.head_hash()


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def convert_other(
    model: GgufModel,
    source: Path,
    folder: Path,
    dtype: torch.dtype,
    name: str,
    progress: ProgressCallback,
) -> str:
    """Write the model of the file ``source`` to the existing ``folder`` by ``transformers``' own
    reader; returns the head's hash, taken before the weights are rounded (float16 rounds away what
    the hash in bf16 reads).

    Raises ``DynaSpecError`` for architectures that ``transformers`` cannot read, models that are no
    causal language model, and files of which it would leave something out; ``OSError`` where
    writing fails.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, file = str(source.parent), source.name
    with quiet_transformers(), _one_reader(), _bars(progress, "de-quantising weights"):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                gguf_file=file,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DynaSpecError(
                f"{name}: no native layers for architecture {model.architecture!r}, and "
                "transformers cannot read this GGUF file as a causal language model "
                f"({_first_line(error)})"
            ) from error
        network, info = loaded
        _check_consumed(model, network, info, name)
        head = network.get_output_embeddings() or network.get_input_embeddings()
        digest = head_hash(head.weight)
        progress(LoadProgress("writing weights"))
        if dtype != torch.float32:
            network = network.to(dtype)
        network.config.dtype = dtype
        network.save_pretrained(folder)
        del network, loaded, head
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


def _check_consumed(model: GgufModel, network: Any, info: dict[str, Any], name: str) -> None:
    """Refuse a file of which a tensor was left out, or that left a part of the model random: a
    reader moves, cuts and turns values, but their number stays."""
    if missing := sorted(info["missing_keys"]):
        raise DynaSpecError(
            f"{name}: the GGUF file has nothing for {missing[0]!r} and {len(missing) - 1} more of "
            f"transformers' {model.architecture} model; it would give random text"
        )
    if unexpected := sorted(info["unexpected_keys"]):
        raise DynaSpecError(
            f"{name}: transformers' {model.architecture} model has no place for {unexpected[0]!r} "
            f"and {len(unexpected) - 1} more of the GGUF file; it would give wrong text"
        )
    placed = {tensor.data_ptr(): tensor.numel() for tensor in network.parameters()}
    if (taken := sum(placed.values())) != model.tensors.num_values:
        raise DynaSpecError(
            f"{name}: the GGUF file holds {model.tensors.num_values} values, of which "
            f"transformers' {model.architecture} model takes {taken}; it would give wrong text"
        )


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
