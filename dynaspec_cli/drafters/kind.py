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


@dataclass(frozen=True)
class DrafterKind:
    """``recognise`` says whether a folder is of this kind; ``load`` makes the drafter for a target
    and its tokenizer, or raises DynaSpecError where they do not fit; ``inspect`` reads what needs
    no target. ``options``: the keys of ``--drafter-option`` that it reads, with their meaning."""

    recognise: Callable[[DrafterFiles], bool]
    load: Callable[[DrafterFiles, Target, TextTokenizer | None], Drafter]
    inspect: Callable[[DrafterFiles], HeadFacts]
    options: Mapping[str, str] = field(default_factory=dict)
