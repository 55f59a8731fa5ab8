"""From a ``--drafter`` value to a drafter: packaged, from a folder, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from dynaspec_cli.checkpoints.fingerprint import Head
from dynaspec_cli.checkpoints.hub import fetch_drafter
from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.language_model import KIND, load_language_model
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.drafters.options import check_known
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.protocols import Drafter, Target
from dynaspec_cli.target.demo_package import SINGLE_FILE_PACKAGES
from dynaspec_cli.target.resolve import HUB_FILE, resolve_model
from dynaspec_cli.target.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Drafting:
    """What drafts: ``drafter`` None: nothing does. ``lookup``: the text itself, beside it."""

    drafter: Drafter | None
    lookup: LookupDrafter | None = None


def load_drafting(
    value: str,
    target: Target,
    tokenizer: TextTokenizer | None = None,
    options: Mapping[str, str] | None = None,
) -> Drafting:
    """A ``--drafter`` value as ``load_drafter`` reads it, and ``NAME+lookup``. ``auto`` has lookup
    beside a packaged drafter, where it brought tokens on most kinds of text and cost none on the
    others (docs/results/README.md)."""
    name, lookup = beside(value)
    drafter = load_drafter(name, target, tokenizer, options)
    if value == "auto" and drafter is not None and drafter.head is not None:
        lookup = LookupDrafter()
    return Drafting(drafter, lookup)


def load_drafter(
    value: str,
    target: Target,
    tokenizer: TextTokenizer | None = None,
    options: Mapping[str, str] | None = None,
) -> Drafter | None:
    """``auto``: the packaged drafter of this target's head, lookup where there is none;
    ``packaged``: the same, but its absence is an error. ``lookup``: the text itself drafts.
    ``none``: None. Otherwise a GGUF file or a package with a language model, or a folder, or the
    name of a hub repository, with a drafter of a kind that drafters/registry.py lists.
    ``tokenizer``: the target's, which a language model's is compared with. ``options``: what the
    user says about a folder's drafter (drafters/options.py).
    """
    if options and value in ("none", "lookup"):
        check_known(options, {}, value)
    if value == "none":
        return None
    if value == "lookup":
        return LookupDrafter()
    if value in ("auto", "packaged"):
        packaged = packaged_drafter(target)
        if packaged is not None:
            return load_folder(DrafterFiles(packaged, "packaged", options), target, tokenizer)
        if value == "auto":
            check_known(options or {}, {}, "lookup")
            return LookupDrafter()
        raise DynaSpecError(
            f"--drafter packaged: none ships for {target.name}; give a folder, or --drafter auto"
        )
    folder = Path(value).expanduser()
    one_file = folder.is_file() or value.endswith(".gguf") or HUB_FILE.fullmatch(value)
    if one_file or value in SINGLE_FILE_PACKAGES:
        check_known(options or {}, {}, KIND)
        source = resolve_model(value, "--drafter")
        return load_language_model(source, value, target, tokenizer)
    if not folder.exists():
        folder = fetch_drafter(value, f"--drafter {value}")
    return load_folder(DrafterFiles(folder, value, options), target, tokenizer)


def beside(value: str) -> tuple[str, LookupDrafter | None]:
    """A ``--drafter`` value without "+lookup", and what that asks for."""
    name, plus, last = value.rpartition("+")
    if not plus or last != "lookup":
        return value, None
    if name in ("none", "lookup", ""):
        raise UsageError(
            f"--drafter {value}: lookup goes beside another drafter; give lookup alone"
        )
    return name, LookupDrafter()


def packaged_drafter(head: Head) -> Path | None:
    """Folder of the drafter that ships with the package for a target's head, or None."""
    for folder, config in _packaged():
        fits = (config.vocab_size, config.hidden_size) == (head.vocab_size, head.hidden_size)
        if fits and head.head_hash() in (None, config.head_hash):
            return folder
    return None


@lru_cache(maxsize=1)
def _packaged() -> tuple[tuple[Path, DrafterConfig], ...]:
    root = Path(str(resources.files("dynaspec_cli"))) / "data"
    return tuple(
        (path.parent, DrafterConfig.load(path.parent))
        for path in sorted(root.glob("*/drafter/config.json"))
    )
