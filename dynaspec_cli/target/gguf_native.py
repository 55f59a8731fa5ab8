"""A GGUF file as a native model: its own tensors, keys and tokenizer, nothing converted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from dynaspec_cli.gguf_files.config import GgufConfig, gguf_config, is_known
from dynaspec_cli.gguf_files.model import GgufModel
from dynaspec_cli.gguf_files.weights import GgufWeights
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.gguf_tokenizer import gguf_tokenizer, open_checked
from dynaspec_cli.target.native_spec import NativeSpec, native_spec
from dynaspec_cli.target.tokenizer import TextTokenizer


@dataclass(frozen=True)
class NativeGguf:
    """A file whose layers run natively."""

    model: GgufModel
    spec: NativeSpec
    weights: GgufWeights

    def tokenizer(self) -> TextTokenizer:
        """Raises ``DynaSpecError`` for a tokenizer that is not read here, by its name."""
        return gguf_tokenizer(self.model)


def open_native(source: Path | ChunkedFile) -> NativeGguf | None:
    """A file of a family that we read ourselves; None for others.

    Raises ``DynaSpecError`` for a damaged file, and for one that holds what would not be used.
    """
    model = open_checked(source)
    if not is_known(model):
        return None
    found = gguf_config(model)
    spec = gguf_spec(found)
    if isinstance(spec, str):
        return None
    return NativeGguf(model, spec, GgufWeights(model.tensors, found.slots))


def gguf_spec(found: GgufConfig) -> NativeSpec | str:
    """The native spec of a file, or the reason why it has none. Its norms hold Gemma's "+1"; a
    Llama may have biases of q, k and v."""
    spec = native_spec({**found.config, "attention_bias": False})
    if isinstance(spec, str):
        return spec
    bias = bool(found.config["attention_bias"])
    return dataclasses.replace(spec, norm_offset=0.0, qkv_bias=bias)
