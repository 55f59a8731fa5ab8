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

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.options import check_known
from dynaspec_cli.drafters.registry import KINDS, kind_of


def inspect_drafter(folder: Path, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Kind, head rows, target vocabulary and verdict of a drafter folder, read with its
    ``--drafter-option``s; of safetensors weights the headers alone are read.

    Raises ``DynaSpecError`` where the folder holds no drafter of a kind that is known.
    """
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
