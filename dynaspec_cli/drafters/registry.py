"""The kinds of drafter folders, in the order in which they are tried.

A kind says by config and tensors whether a folder is its own, never by the names of classes in it;
the first that says so loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynaspec_cli.drafters.config import FORMAT
from dynaspec_cli.drafters.eagle import load_eagle
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Drafter, Target


@dataclass(frozen=True)
class DrafterKind:
    """``recognise`` says whether a folder is of this kind; ``load`` makes the drafter, or raises
    DynaSpecError where folder and target do not fit."""

    name: str
    description: str
    recognise: Callable[[DrafterFiles], bool]
    load: Callable[[DrafterFiles, Target], Drafter]


KINDS = (
    DrafterKind(
        FORMAT,
        "what dynaspec train-drafter makes",
        lambda files: files.config.get("format") == FORMAT,
        load_eagle,
    ),
)


def load_folder(files: DrafterFiles, target: Target) -> Drafter:
    """The drafter in ``files``, made for ``target``."""
    for kind in KINDS:
        if kind.recognise(files):
            return kind.load(files, target)
    known = "; ".join(f"{kind.name} ({kind.description})" for kind in KINDS)
    raise DynaSpecError(
        f"drafter {files.folder}: its config.json is of no format that is known; expected {known}"
    )
