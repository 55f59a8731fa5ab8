"""The kinds of drafter folders, in the order in which they are tried.

A kind says by config and tensors whether a folder is its own, never by the names of classes in it;
the first that says so loads it. Folders of other methods are refused by name before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dynaspec_cli.drafters.config import FORMAT
from dynaspec_cli.drafters.eagle import load_eagle
from dynaspec_cli.drafters.eagle1 import load_eagle1
from dynaspec_cli.drafters.eagle3 import load_eagle3
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.options import PUBLISHED, check_known
from dynaspec_cli.drafters.other_methods import refuse_other_methods
from dynaspec_cli.drafters.published import EAGLE1, EAGLE3, SPECULATORS
from dynaspec_cli.drafters.published_weights import HIDDEN_NORM, canonical
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Drafter, Target


@dataclass(frozen=True)
class DrafterKind:
    """``recognise`` says whether a folder is of this kind; ``load`` makes the drafter, or raises
    DynaSpecError where folder and target do not fit. ``options``: keys of ``--drafter-option`` that
    it reads (``DrafterFiles.options``), with their meaning."""

    name: str
    description: str
    recognise: Callable[[DrafterFiles], bool]
    load: Callable[[DrafterFiles, Target], Drafter]
    options: Mapping[str, str] = field(default_factory=dict)


def _is_speculators(files: DrafterFiles) -> bool:
    return files.config.get("speculators_model_type") == "eagle3"


def _is_eagle3(files: DrafterFiles) -> bool:
    return any(canonical(name) == HIDDEN_NORM for name in files.shapes())


def _is_eagle1(files: DrafterFiles) -> bool:
    shapes = {canonical(name): shape for name, shape in files.shapes().items()}
    fc = shapes.get("fc.weight", ())
    first = any(name.startswith("layers.0.") for name in shapes)
    return len(fc) == 2 and fc[1] == 2 * fc[0] and first


KINDS = (
    DrafterKind(
        FORMAT,
        "what dynaspec train-drafter makes",
        lambda files: files.config.get("format") == FORMAT,
        load_eagle,
    ),
    DrafterKind(
        SPECULATORS,
        "EAGLE-3 and 3.1 heads in folders of the speculators library",
        _is_speculators,
        load_eagle3,
        PUBLISHED,
    ),
    DrafterKind(EAGLE3, "EAGLE-3 and 3.1 heads", _is_eagle3, load_eagle3, PUBLISHED),
    DrafterKind(EAGLE1, "EAGLE-1, EAGLE-2 and HASS heads", _is_eagle1, load_eagle1, PUBLISHED),
)


def kind_of(files: DrafterFiles) -> DrafterKind:
    """The kind that a folder is of. Raises DynaSpecError where it is of none."""
    refuse_other_methods(files)
    for kind in KINDS:
        if kind.recognise(files):
            return kind
    known = "; ".join(f"{kind.name} ({kind.description})" for kind in KINDS)
    raise DynaSpecError(f"drafter {files.folder}: none of the kinds that are known: {known}")


def load_folder(files: DrafterFiles, target: Target) -> Drafter:
    """The drafter in ``files``, made for ``target``."""
    kind = kind_of(files)
    check_known(files.options, kind.options, kind.name)
    return kind.load(files, target)
