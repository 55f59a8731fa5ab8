"""Tokenizers of folders as ``transformers`` made them, kept in the cache folder.

``transformers`` may build another tokenizer than ``tokenizer.json`` alone says (by the class that
tokenizer_config.json names), so the file itself cannot be trusted; importing the library takes a
second or two of every start.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.cache_dir import cache_root, make_folder, write_text
from dynaspec_cli.target.chat import ChatTemplate

VERSION = 1
"""Raised whenever the same files would be kept otherwise."""

FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*/*.jinja")
OTHERS = ("generation_config.json", "model.safetensors.index.json")
"""Of those, what no tokenizer reads."""


def kept_place(folder: Path) -> Path:
    """Where the tokenizer of ``folder`` is kept: by the content of every file that it may be read
    from, and by the libraries' versions."""
    digest = hashlib.sha256()
    for library in ("transformers", "tokenizers"):
        digest.update(f"{library} {importlib.metadata.version(library)};".encode())
    paths = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        if path.name not in OTHERS:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size};".encode())
            digest.update(path.read_bytes())
    return cache_root() / "tokenizers" / f"{digest.hexdigest()[:32]}-folder-v{VERSION}.json"


def read_kept(place: Path) -> tuple[Any, ChatTemplate | None] | None:
    """(the ``tokenizers.Tokenizer``, the chat template); None where nothing whole is kept."""
    from tokenizers import Tokenizer

    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        source, special = kept["template"], dict(kept["special"])
        backend = Tokenizer.from_str(kept["backend"])
    except Exception:  # absent, cut or damaged: made again
        return None
    return backend, ChatTemplate(source, special) if source else None


def keep(place: Path, backend: Any, template: ChatTemplate | None) -> None:
    """Write it; a cache folder that cannot be written to costs only time."""
    value = {
        "backend": backend.to_str(),
        "template": None if template is None else template.source,
        "special": {} if template is None else dict(template.special),
    }
    with contextlib.suppress(OSError, DynaSpecError):
        make_folder(place.parent)
        write_text(place, json.dumps(value, ensure_ascii=False))
