"""What a dynamic shortlist can do for a drafter checkpoint: raise coverage, or only cut cost.

Decided by the head that the drafter was trained with. Where it shares the target's head, or has one
over the whole vocabulary, its candidates can be any token and a shortlist that follows the context
covers more than a fixed one of equal size. Where its own head has fewer rows (``draft_vocab_size``,
a ``d2t`` map), tokens outside those rows can never be drafted: a shortlist inside them makes the
step cheaper, never better covered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynaspec_cli.doctor.memory import ModelSizes, folder_sizes, gguf_sizes
from dynaspec_cli.drafters.files import CONFIG_FILE, DrafterFiles
from dynaspec_cli.drafters.kind import HeadFacts
from dynaspec_cli.drafters.language_model import KIND
from dynaspec_cli.drafters.load import beside
from dynaspec_cli.drafters.options import check_known
from dynaspec_cli.drafters.registry import KINDS, kind_of
from dynaspec_cli.errors import DynaSpecError

NAMES = ("auto", "none", "packaged", "lookup")
"""Values of ``--drafter`` that are no folder and no file."""


def drafter_path(value: str) -> Path | None:
    """The folder or GGUF file of a ``--drafter`` value; None for a name."""
    name, _ = beside(value)
    return None if name in NAMES else Path(name).expanduser()


def language_model_sizes(path: Path) -> ModelSizes | None:
    """Of a GGUF file or a folder with a language model; None for other drafters."""
    if path.is_file():
        sizes = gguf_sizes(path)
        if isinstance(sizes, int):
            raise DynaSpecError(f"--drafter {path}: the file does not tell its shape")
        return sizes
    if not (path / CONFIG_FILE).is_file():
        return None
    return folder_sizes(path) if kind_of(DrafterFiles(path, str(path)))[0] == KIND else None


def inspect_drafter(folder: Path, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Kind, head rows, target vocabulary and verdict of a drafter folder, read with its
    ``--drafter-option``s; of safetensors weights the headers alone are read.

    Raises ``DynaSpecError`` where the folder holds no drafter of a kind that is known. A GGUF file
    holds a language model.
    """
    sizes = language_model_sizes(folder) if folder.is_file() else None
    if sizes is not None:
        check_known(options or {}, {}, KIND)
        name, head = KIND, HeadFacts(sizes.vocab_size, sizes.vocab_size)
    else:
        files = DrafterFiles(folder, str(folder), options)
        name, kind = kind_of(files)
        check_known(files.options, kind.options, name)
        head = kind.inspect(files)
    whole = head.rows is None or head.rows >= head.vocab_size
    return {
        "folder": str(folder),
        "format": name,
        "description": KINDS[name].description,
        "target_vocab_size": head.vocab_size,
        "head_rows": head.rows,
        "can_raise_coverage": whole,
        "verdict": _verdict(head.rows, head.vocab_size, whole),
    }


def _verdict(rows: int | None, vocabulary: int, whole: bool) -> str:
    if rows is None:
        return (
            "the drafter reads the target's LM head, so a dynamic shortlist chooses among all of "
            "the vocabulary: it can raise coverage over a fixed one of equal size, and cuts cost"
        )
    if whole:
        return (
            "the drafter's own head has the whole vocabulary, so a dynamic shortlist can raise "
            "coverage over a fixed one of equal size, and cuts cost"
        )
    return (
        f"the drafter's own head has {rows:,} of {vocabulary:,} tokens, so a dynamic shortlist "
        "can only cut cost: tokens outside those rows stay out of reach"
    )
