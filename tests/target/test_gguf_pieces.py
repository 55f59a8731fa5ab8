"""The default model's pieces: their hash is checked once, beside what else a start does."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target import gguf_tokenizer as module
from dynaspec_cli.target.demo_package import ChunkedFile


def test_pieces_are_checked_once_and_beside(
    tiny_gguf: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ChunkedFile((tiny_gguf,), hashlib.sha256(tiny_gguf.read_bytes()).hexdigest())
    damaged = dataclasses.replace(source, sha256="0" * 64)
    real, seen = module.check_pieces, []
    monkeypatch.setattr(module, "check_pieces", lambda s: seen.append(s) or real(s))
    for given in (source, damaged):
        resolved = SimpleNamespace(gguf=given)
        monkeypatch.setattr(module, "resolve_local", lambda model, r=resolved: r)
        module.begin_tokenizer("either")
    assert module.open_checked(source).architecture
    with pytest.raises(DynaSpecError, match="package is damaged"):
        module.open_checked(damaged)
    assert sorted(seen, key=str) == sorted([source, damaged], key=str)
    module.open_checked(source)  # nothing was begun: checked here
    assert len(seen) == 3
    for given in (source, damaged):
        module.begun_tokenizer(given)
