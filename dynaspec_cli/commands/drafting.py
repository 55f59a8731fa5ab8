"""Options of what drafts, as decorators, and the settings objects made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from dynaspec_cli.commands.compose import compose
from dynaspec_cli.commands.types import (
    AcceptanceType,
    NameType,
    NumbersType,
    ShortlistType,
    TextType,
)
from dynaspec_cli.config import DRAWS, MOST_NODES, VERIFICATIONS, ShortlistConfig, TreeConfig
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.tree.registry import TREES
from dynaspec_cli.weights.registry import OPTION, STORED, WEIGHT_FORMATS

DRAFTER_OPTION = click.option(
    "--drafter-option",
    type=TextType(),
    multiple=True,
    metavar="KEY=VALUE",
    help="What a published head's files leave open, such as taps=2,16,29 "
    "(docs/guide/heads.md); can be repeated.",
)

DRAFT_HEAD_OPTION = click.option(
    OPTION,
    type=NameType(WEIGHT_FORMATS, STORED),
    default=STORED,
    help="Weight format that a copy of the drafter's head is made in, for fewer bytes a draft "
    "step; stored: the head as it is, without a copy. Changes drafts, never the output.",
)

_TREE = TreeConfig()
_SIZES = ", ".join(f"{name} {size}" for name, size in shortlists.DEFAULT_SIZES.items())
_DRAFTING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--drafter",
        metavar="auto|none|packaged|lookup|NAME[+lookup]",
        default="auto",
        help="auto: the one shipped for the target with lookup (the text itself) beside it, else "
        "lookup alone; none: autoregressive decoding; NAME: a folder, hub name or .gguf file with "
        "a draft head or a smaller language model of the same tokenizer.",
    ),
    DRAFTER_OPTION,
    click.option(
        "--shortlist",
        type=ShortlistType(),
        default=None,
        help="Which tokens the drafter scores; or a bundle's folder, NAME=FOLDER to use it for "
        "another method, or a token-map file."
        f"  [default: {shortlists.DEFAULT}, or nanospec where no shipped bundle fits the target]",
    ),
    click.option(
        "--shortlist-size",
        type=int,
        metavar="N",
        help=f"Tokens that a draft step scores.  [default: {_SIZES}]",
    ),
    DRAFT_HEAD_OPTION,
    click.option(
        "--tree",
        type=NameType(TREES),
        default=_TREE.policy,
        help="How the draft tree grows.",
    ),
    click.option(
        "--tree-size",
        type=int,
        metavar="N",
        help="Nodes verified in one target pass, the root not counted.  [default: what rounds "
        f"cost here and have brought, 0 to {MOST_NODES}]",
    ),
    click.option(
        "--tree-depth",
        type=int,
        metavar="N",
        default=_TREE.depth,
        help="Levels of nodes below the root; draft steps at most.",
    ),
    click.option(
        "--tree-width",
        type=int,
        metavar="N",
        default=_TREE.width,
        help="Child nodes of a node at most.",
    ),
)


def drafting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--drafter``, ``--shortlist`` with its size, ``--tree`` with its size, depth and width,
    and ``tree_filling_options``."""
    return compose(*_DRAFTING)(tree_filling_options(function))


_FILLING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--tree-threshold",
        type=float,
        metavar="P",
        help="Probability below which drafting stops (dyspec, ddd).  [default: dyspec 2 / "
        "--tree-size, ddd 0.74]",
    ),
    click.option(
        "--tree-draw",
        type=click.Choice(DRAWS),
        default="auto",
        help="Children are drawn from the drafter's distribution or are its best tokens; auto: "
        "drawn where the target samples.",
    ),
    click.option(
        "--draft-temperature",
        type=float,
        metavar="T",
        help="What divides the drafter's logits.  [default: the target's for drawn children; else "
        "0.75 for a greedy target, at most 1 for another]",
    ),
    click.option(
        "--tree-acceptance",
        type=AcceptanceType(),
        metavar="auto|LIST|FILE",
        default="auto",
        help="sequoia: probability that the 1st, 2nd, ... child tried is the one accepted; auto: "
        "as bench --measure-acceptance measured it for the drafter.",
    ),
    click.option(
        "--tree-expansion",
        type=NumbersType(),
        metavar="K,K,...",
        help="specinfer: children of a node at each level.  [default: 1,1,k,1,1,1,1,1 with "
        "--tree-size nodes]",
    ),
    click.option(
        "--ddd-steps",
        type=NumbersType(),
        metavar="N,N,...",
        help="ddd: draft steps after which the beam is tested.  [default: each one]",
    ),
    click.option(
        "--tree-verification",
        type=click.Choice(VERIFICATIONS),
        default=_TREE.verification,
        help="Drawn children are verified one by one from the root, or by whole paths from the "
        "leaves.",
    ),
)
_FIELDS = {"tree_threshold": "threshold", "tree_draw": "draw", "tree_acceptance": "acceptance"}
_FIELDS |= {"tree_expansion": "expansion", "tree_verification": "verification"}
_FIELDS |= {name: name for name in ("draft_temperature", "ddd_steps")}


def tree_filling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of single tree policies; the command receives them as ``filling``, fields of
    ``TreeConfig``."""

    @functools.wraps(function)
    def wrapper(**params: Any) -> Any:
        filling = {field: params.pop(option) for option, field in _FIELDS.items()}
        return function(filling=filling, **params)

    return compose(*_FILLING)(wrapper)


def tree_config(
    tree: str,
    tree_size: int | None,
    tree_depth: int,
    tree_width: int,
    filling: dict[str, Any],
) -> TreeConfig:
    """The checked object; raises ``UsageError``. Without a size it adapts."""
    return TreeConfig(tree, tree_size, tree_depth, tree_width, **filling)


def shortlist_config(
    shortlist: str | None, shortlist_size: int | None, draft_head: str
) -> ShortlistConfig:
    """The checked object; raises ``UsageError``."""
    return ShortlistConfig(shortlist or "auto", shortlist_size, draft_head)
