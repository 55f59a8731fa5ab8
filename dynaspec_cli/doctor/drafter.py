"""What a dynamic shortlist can do for a drafter checkpoint: raise coverage, or only cut cost.

Decided by the head that the drafter was trained with. Where it shares the target's head, or has one
over the whole vocabulary, its candidates can be any token and a shortlist that follows the context
covers more than a fixed one of equal size. Where its own head has fewer rows (``draft_vocab_size``,
a ``d2t`` map), tokens outside those rows can never be drafted: a shortlist inside them makes the
step cheaper, never better covered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynaspec_cli.doctor.memory import safetensors_shapes
from dynaspec_cli.drafters.config import FORMAT
from dynaspec_cli.errors import DynaSpecError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HEAD_NAMES = ("lm_head.weight", "head.weight")


def inspect_drafter(folder: Path) -> dict[str, Any]:
    """Format, head rows, target vocabulary and verdict of a drafter folder; weights are not read.

    Raises ``DynaSpecError`` where the folder holds no drafter.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DynaSpecError(f"--drafter {folder}: no config.json there") from error
    except ValueError as error:
        raise DynaSpecError(f"--drafter {folder}: config.json is no JSON ({error})") from error
    shapes = safetensors_shapes(folder)
    if not shapes:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        found = f"; {pickles[0]} is a pickle and is not read" if pickles else ""
        raise DynaSpecError(f"--drafter {folder}: expected model.safetensors{found}")
    vocabulary = _vocabulary(config)
    rows = _head_rows(config, shapes)
    whole = rows is None or vocabulary is None or rows >= vocabulary
    return {
        "folder": str(folder),
        "format": _format(config),
        "target_vocab_size": vocabulary,
        "head_rows": rows,
        "can_raise_coverage": whole,
        "verdict": _verdict(rows, vocabulary, whole),
    }


def _format(config: dict[str, Any]) -> str:
    if config.get("format") == FORMAT:
        return FORMAT
    if "speculators_model_type" in config:
        return f"speculators {config['speculators_model_type']}"
    architectures = config.get("architectures") or ["unknown"]
    return str(architectures[0])


def _vocabulary(config: dict[str, Any]) -> int | None:
    inner = config.get("transformer_layer_config") or {}
    value = config.get("vocab_size") or inner.get("vocab_size")
    return int(value) if value else None


def _head_rows(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Rows of the drafter's own head; None: it uses the target's."""
    if "d2t" in shapes:
        return shapes["d2t"][0]
    if config.get("draft_vocab_size"):
        return int(config["draft_vocab_size"])
    return next((shapes[name][0] for name in HEAD_NAMES if name in shapes), None)


def _verdict(rows: int | None, vocabulary: int | None, whole: bool) -> str:
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
