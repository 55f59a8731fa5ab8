"""What the registry holds: a kind of drafter folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.protocols import Drafter, Target
from dynaspec_cli.target.tokenizer import TextTokenizer


@dataclass(frozen=True)
class HeadFacts:
    """What a folder says about the LM head without its target. ``vocab_size``: of the target;
    ``rows``: of the drafter's own head, None: the target's head serves."""

    vocab_size: int
    rows: int | None


LoadDrafter = Callable[[DrafterFiles, Target, TextTokenizer | None], Drafter]


@dataclass(frozen=True)
class DrafterKind:
    """``recognise`` says whether a folder is of this kind; ``load`` makes the drafter, or raises
    DynaSpecError where folder and target (with its tokenizer, where that is known) do not fit;
    ``inspect`` reads what needs no target.
    ``options``: the keys of ``--drafter-option`` that it reads, with their meaning."""

    recognise: Callable[[DrafterFiles], bool]
    load: LoadDrafter
    inspect: Callable[[DrafterFiles], HeadFacts]
    options: Mapping[str, str] = field(default_factory=dict)


def by_target(load: Callable[[DrafterFiles, Target], Drafter]) -> LoadDrafter:
    """A ``load`` that needs no tokenizer: a head reads the target's own rows."""
    return lambda files, target, tokenizer: load(files, target)
