"""A GGUF file's tokenizer. Nothing here imports torch, so that it can be built beside that import,
which takes as long."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.model import GgufModel, open_gguf
from dynaspec_cli.gguf_files.tokenizer import build_tokenizer, derived_merges
from dynaspec_cli.gguf_files.vocabulary import Vocabulary, read_vocabulary
from dynaspec_cli.target.cache_dir import cache_root, make_folder, write_bytes
from dynaspec_cli.target.chat import ChatTemplate
from dynaspec_cli.target.demo_package import ChunkedFile, check_pieces
from dynaspec_cli.target.resolve import resolve_local
from dynaspec_cli.target.tokenizer import TextTokenizer

TOKENIZER_VERSION = 2
"""Raised whenever the same keys would give other merges."""

SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unk": "unk_token", "pad": "pad_token"}


_begun: dict[Path | ChunkedFile, Future[TextTokenizer]] = {}
_checks: dict[ChunkedFile, Future[None]] = {}


def begin_tokenizer(model: str | None) -> None:
    """Start to build the tokenizer of ``--model`` in a thread of its own, and in another to check
    a file in pieces, if it is a GGUF file on this machine; ``load`` takes them from there. Errors
    wait for whoever takes them."""
    with contextlib.suppress(DynaSpecError):
        source = resolve_local(model)
        if source is not None and source.gguf is not None:
            pool = ThreadPoolExecutor(2)
            if isinstance(source.gguf, ChunkedFile):
                _checks[source.gguf] = pool.submit(check_pieces, source.gguf)
            _begun[source.gguf] = pool.submit(_read, source.gguf)
            pool.shutdown(wait=False)


def _read(source: Path | ChunkedFile) -> TextTokenizer:
    return gguf_tokenizer(open_gguf(file_pieces(source)))


def begun_tokenizer(source: Path | ChunkedFile) -> Future[TextTokenizer] | None:
    """What ``begin_tokenizer`` began for ``source``; it is handed out once."""
    return _begun.pop(source, None)


def file_pieces(source: Path | ChunkedFile) -> Sequence[Path]:
    """The files that hold ``source``, in order."""
    return source.chunks if isinstance(source, ChunkedFile) else (source,)


def open_checked(source: Path | ChunkedFile) -> GgufModel:
    """``open_gguf``; of a file in pieces their hash is checked before."""
    if isinstance(source, ChunkedFile):
        check = _checks.pop(source, None)
        check.result() if check is not None else check_pieces(source)
    return open_gguf(file_pieces(source))


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
    vocabulary and kept in the cache folder."""
    if vocabulary.merges is not None:
        return build_tokenizer(vocabulary)
    place = cache_root() / "tokenizers" / f"{vocabulary.fingerprint()}-v{TOKENIZER_VERSION}.npy"
    with contextlib.suppress(
        OSError,
        EOFError,
        ValueError,
        IndexError,
        DynaSpecError,  # absent or damaged
    ):
        kept = np.load(place, allow_pickle=False)
        return build_tokenizer(vocabulary, kept.reshape(-1, 2))
    merges = derived_merges(vocabulary)
    with contextlib.suppress(OSError, DynaSpecError):  # else they are derived again next time
        make_folder(place.parent)
        data = io.BytesIO()
        np.save(data, merges.astype(np.int32), allow_pickle=False)
        write_bytes(place, data.getvalue())
    return build_tokenizer(vocabulary, merges)
