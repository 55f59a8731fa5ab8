"""A GGUF file as a native model: its own tensors, keys and tokenizer, nothing converted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.gguf_files.config import GgufConfig, gguf_config, is_known
from dynaspec_cli.gguf_files.model import GgufModel, open_gguf
from dynaspec_cli.gguf_files.tokenizer import build_tokenizer
from dynaspec_cli.gguf_files.vocabulary import Vocabulary, read_vocabulary
from dynaspec_cli.gguf_files.weights import GgufWeights
from dynaspec_cli.target.cache_dir import cache_root, make_folder, write_text
from dynaspec_cli.target.chat import ChatTemplate
from dynaspec_cli.target.demo_package import ChunkedFile, check_pieces
from dynaspec_cli.target.native_spec import NativeSpec, native_spec
from dynaspec_cli.target.tokenizer import TextTokenizer

TOKENIZER_VERSION = 1
"""Raised whenever the same keys would become another tokenizer."""

SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unk": "unk_token", "pad": "pad_token"}


def file_pieces(source: Path | ChunkedFile) -> Sequence[Path]:
    """The files that hold ``source``, in order."""
    return source.chunks if isinstance(source, ChunkedFile) else (source,)


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
    if isinstance(source, ChunkedFile):
        check_pieces(source)
    model = open_gguf(file_pieces(source))
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


def gguf_tokenizer(model: GgufModel) -> TextTokenizer:
    """The tokenizer of a file.

    Raises ``DynaSpecError`` for a tokenizer that is not read here, by its name.
    """
    vocabulary = read_vocabulary(model)
    return TextTokenizer(
        tokenizer_backend(vocabulary),
        vocabulary.end_ids,
        vocabulary.ids.get("bos"),
        chat_template(vocabulary),
    )


def chat_template(vocabulary: Vocabulary) -> ChatTemplate | None:
    """The file's own; None for a base model."""
    if vocabulary.template is None:
        return None
    return ChatTemplate(vocabulary.template, special_texts(vocabulary))


def special_texts(vocabulary: Vocabulary) -> dict[str, str]:
    """Spellings by the names that templates use."""
    texts = {name: vocabulary.text(key) for key, name in SPECIAL.items()}
    return {name: text for name, text in texts.items() if text is not None}


def tokenizer_backend(vocabulary: Vocabulary) -> Any:
    """The ``tokenizers.Tokenizer``. Where the file has no merges they are derived from the
    vocabulary, two seconds for 262,144 tokens, and kept in the cache folder."""
    if vocabulary.merges is not None:
        return build_tokenizer(vocabulary)
    from tokenizers import Tokenizer

    folder = cache_root() / "tokenizers"
    kept = folder / f"{vocabulary.fingerprint()}-v{TOKENIZER_VERSION}.json"
    if kept.is_file():
        try:
            return Tokenizer.from_file(str(kept))
        except Exception:  # cut or damaged: built again
            kept.unlink(missing_ok=True)
    backend = build_tokenizer(vocabulary)
    make_folder(folder)
    write_text(kept, backend.to_str())
    return backend
