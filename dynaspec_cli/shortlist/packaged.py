"""Bundles: the one in a folder, and those that ship with the package."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

from dynaspec_cli.checkpoints.bundle import (
    CONFIG_FILE,
    HOW_TO_BUILD,
    ShortlistBundle,
    is_bundle,
)
from dynaspec_cli.checkpoints.fingerprint import Head
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Target


def load_bundle(path: Path, target: Target) -> ShortlistBundle:
    """The bundle in a folder, checked against the target."""
    if not is_bundle(path):
        raise DynaSpecError(
            f"--shortlist {path}: no shortlist bundle ({CONFIG_FILE} and clusters.safetensors); "
            f"make one with {HOW_TO_BUILD}"
        )
    bundle = ShortlistBundle.from_pretrained(path)
    bundle.check_target(target)
    return bundle


def packaged_bundle(target: Target) -> ShortlistBundle | None:
    """The bundle that ships with the package for this target's head, or None."""
    folder = packaged_folder(target)
    return None if folder is None else ShortlistBundle.from_pretrained(folder)


def packaged_folder(head: Head) -> Path | None:
    """Folder of the bundle that ships with the package for a target's head, or None."""
    for folder, vocab_size, hidden_size, head_hash in _packaged():
        same_shape = (vocab_size, hidden_size) == (head.vocab_size, head.hidden_size)
        if same_shape and head.head_hash() in (None, head_hash):
            return folder
    return None


@lru_cache(maxsize=1)
def _packaged() -> tuple[tuple[Path, int, int, str], ...]:
    root = Path(str(resources.files("dynaspec_cli"))) / "data"
    found = []
    for config in sorted(root.glob(f"*/shortlist/{CONFIG_FILE}")):
        data = json.loads(config.read_text(encoding="utf-8"))
        found.append((config.parent, data["vocab_size"], data["hidden_size"], data["head_hash"]))
    return tuple(found)
