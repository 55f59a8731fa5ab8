"""Token maps: a file with a list of absolute token ids, most frequent first.

Read: FR-Spec's and SGLang's ``torch.save``d list or tensor (without pickle execution), ``.json``,
``.txt`` (one id a line). Written: ``.json``, ``.txt`` and ``.pt``.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.errors import TEXT_ENCODING, DynaSpecError

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SUFFIXES = (*TORCH_SUFFIXES, ".json", ".txt")


def load_token_map(path: str | Path, vocab_size: int, expected_size: int | None = None) -> VocabMap:
    """Token ids of ``path`` in the file's order, checked against the target's vocabulary.

    ``expected_size``: refuse a file with fewer ids. Raises DynaSpecError for duplicates, ids out of
    range, an unknown format, or a pickle that needs more than tensors and lists.
    """
    path = Path(path)
    if not path.is_file():
        raise DynaSpecError(f"token map {path}: no such file")
    suffix = path.suffix.lower()
    if suffix in TORCH_SUFFIXES:
        values = _read_torch(path)
    elif suffix == ".json":
        values = _read_json(path)
    elif suffix == ".txt":
        values = _read_text(path)
    else:
        raise DynaSpecError(
            f"token map {path}: expected one of {', '.join(SUFFIXES)}, got {suffix or 'no suffix'}"
        )
    ids = _to_tensor(values, path)
    if expected_size is not None and ids.numel() < expected_size:
        raise DynaSpecError(
            f"token map {path}: --shortlist-size asks for {expected_size} tokens, the file holds "
            f"{ids.numel()}"
        )
    return VocabMap.from_absolute(ids, vocab_size, f"token map {path}")


def save_token_map(path: str | Path, ids: Tensor) -> None:
    """Write ids [R] in order, atomically; the suffix chooses the format (.pt is what FR-Spec and
    SGLang read)."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DynaSpecError(
            f"token map {path}: expected one of {', '.join(SUFFIXES)}, got {suffix}"
        )
    values = ids.tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        if suffix in TORCH_SUFFIXES:
            torch.save(values, temporary)
        elif suffix == ".json":
            Path(temporary).write_text(json.dumps(values), encoding="utf-8")
        else:
            Path(temporary).write_text("".join(f"{v}\n" for v in values), encoding="utf-8")
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise DynaSpecError(f"token map {path}: could not be written ({error})") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DynaSpecError(
            f"token map {path}: refused, it is no torch.save'd list or tensor of ids "
            "(anything else could run code on loading); save the list as .json instead"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DynaSpecError(
            f"token map {path}: not a readable torch file; it is damaged"
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding=TEXT_ENCODING))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DynaSpecError(f"token map {path}: not valid JSON ({error})") from error


def _read_text(path: Path) -> list[int]:
    ids = []
    try:
        for number, line in enumerate(path.read_text(encoding=TEXT_ENCODING).splitlines(), 1):
            if not line.strip():
                continue
            try:
                ids.append(int(line))
            except ValueError:
                raise DynaSpecError(
                    f"token map {path}: line {number}: expected one token id, got "
                    f"{line.strip()[:40]!r}"
                ) from None
    except UnicodeDecodeError as error:
        raise DynaSpecError(f"token map {path}: not UTF-8 text") from error
    return ids


def _to_tensor(values: Any, path: Path) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, (list, tuple)):
        raise DynaSpecError(
            f"token map {path}: expected a flat list of token ids, got {type(values).__name__}"
        )
    for at, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int):
            raise DynaSpecError(
                f"token map {path}: entry {at}: expected an integer token id, got "
                f"{str(value)[:40]!r}"
            )
        if not -(2**63) <= value < 2**63:
            raise DynaSpecError(f"token map {path}: entry {at}: {value} is no token id")
    return torch.tensor(values, dtype=torch.int64)
