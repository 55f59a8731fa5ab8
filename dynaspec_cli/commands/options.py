"""Options that several commands share, as decorators, and the settings objects made of them.

Names, defaults and meanings are stated once, here. Checks of values are in ``dynaspec_cli.config``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from dynaspec_cli import settings_file
from dynaspec_cli.commands.registry import COMMANDS, DEBUG_KEY
from dynaspec_cli.config import (
    DRAWS,
    MOST_NODES,
    VERIFICATIONS,
    SamplingConfig,
    ShortlistConfig,
    TreeConfig,
)
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.registry import Registry
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.tree.acceptance import read_vector
from dynaspec_cli.tree.registry import TREES
from dynaspec_cli.weights.registry import OPTION, STORED, WEIGHT_FORMATS

F = TypeVar("F", bound=Callable[..., Any])

DTYPES = ("auto", "packed", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class CommonOptions:
    """The options that every command has. ``model`` None: the embedded default model. ``device``
    "map": --device-map auto."""

    model: str | None
    dtype: str
    device: str
    threads: int | None
    seed: int
    json: bool
    quiet: bool
    debug: bool


class TextType(click.ParamType):
    """A text that an environment variable holds whole: it is not split at white space."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [rv]


class ChatArgument(click.ParamType):
    """KEY=VALUE for the chat template: true, false, none, a number or other JSON is read as such,
    anything else as text."""

    name = "chat argument"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--chat-arg: expected KEY=VALUE, got {value!r}")
        words = {"true": True, "false": False, "none": None, "null": None}
        if text.lower() in words:
            return key, words[text.lower()]
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [rv]


class NameType(click.Choice[str]):
    """A name of a registry, or one of ``others``; what is unknown is refused as the registry
    does."""

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        super().__init__((*others, *registry.names()))
        self.registry = registry
        self.others = others

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.others:
            self.registry.check(str(value))
        return str(value)


class ShortlistType(click.ParamType):
    """A method's name, the path of a bundle folder or token-map file, or NAME=FOLDER."""

    name = "shortlist"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(shortlists.SHORTLISTS)}|PATH]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        shortlists.parse(str(value))
        return str(value)


def _read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None:
        settings = settings_file.read_settings(value)
        found = settings_file.file_options(settings, ctx, value, tuple(COMMANDS))
        ctx.default_map = {**(ctx.default_map or {}), **found.values}
        ctx.meta[settings_file.FILE_KEY] = found
        # --debug may have been parsed before the file that sets it was read.
        ctx.meta[DEBUG_KEY] = ctx.meta.get(DEBUG_KEY, False) or found.values.get("debug", False)
    return value


def _remember_debug(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    ctx.meta[DEBUG_KEY] = ctx.meta.get(DEBUG_KEY, False) or value
    return value


def _compose(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_COMMON: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--model",
        metavar="NAME|FOLDER|FILE",
        help="Target: a hub name, a model folder or a .gguf file.  [default: the embedded model]",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        help="Target's weights; auto: a GGUF file's own blocks (packed) on a CPU.",
    ),
    click.option(
        "--device", metavar="auto|cpu|cuda|cuda:N", default="auto", help="Where the target runs."
    ),
    click.option(
        "--device-map",
        type=click.Choice(("auto",)),
        help="auto: spread the target's layers over all GPUs; needs accelerate.  "
        "[default: one device]",
    ),
    click.option(
        "--threads", type=int, metavar="N", help="CPU threads.  [default: PyTorch's, one a core]"
    ),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="Whole number that every random choice follows from.",
    ),
    click.option("--json", "json", is_flag=True, help="Print one JSON object and nothing else."),
    click.option("--quiet", "-q", is_flag=True, help="Print the result and errors only."),
    click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="TOML file with options; environment variables and flags override it.  "
        "[default: none]",
    ),
)


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the common options; the command receives them as ``common: CommonOptions``."""

    @functools.wraps(function)
    def wrapper(**params: Any) -> Any:
        values = {name: params.pop(name) for name in CommonOptions.__dataclass_fields__}
        if params.pop("device_map") is not None:
            if values["device"] != "auto":
                raise UsageError(
                    f"--device-map: expected no --device beside it, got {values['device']}"
                )
            values["device"] = "map"
        common = CommonOptions(**values)
        if common.threads is not None and common.threads < 1:
            raise UsageError(f"--threads: expected at least 1, got {common.threads}")
        return function(common=common, **params)

    return _compose(*_COMMON)(wrapper)


_SAMPLING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--sampling",
        type=click.Choice(("options", "model")),
        default="options",
        help="model: temperature, top-k, top-p and min-p as the model's generation_config.json "
        "recommends, where the options beside it do not say otherwise.",
    ),
    click.option(
        "--temperature",
        type=float,
        metavar="T",
        default=0.0,
        help="What divides the logits; 0: greedy decoding.",
    ),
    click.option(
        "--top-k", type=int, metavar="K", default=0, help="Keep the K most probable tokens; 0: all."
    ),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        default=1.0,
        help="Keep the fewest tokens that have probability P together; 1: all.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="P",
        default=0.0,
        help="Drop tokens below P times the best one's probability; 0: off.",
    ),
)


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--sampling --temperature --top-k --top-p --min-p``; see ``sampling_config``."""

    @functools.wraps(function)
    def wrapper(**params: Any) -> Any:
        if params.pop("sampling") == "model":
            params |= _recommended(params["model"], bool(params["quiet"]))
        return function(**params)

    return _compose(*_SAMPLING)(wrapper)


def _recommended(model: str | None, quiet: bool) -> dict[str, Any]:
    """The model's own filters, those left out that an option gives; says what is not applied."""
    from dynaspec_cli.target.recommended import recommended
    from dynaspec_cli.target.resolve import resolve_model

    source = resolve_model(model)
    found = recommended(source)
    if found is None:
        raise DynaSpecError(
            f"--sampling model: {source.name} comes with no recommendation "
            "(generation_config.json); give --temperature, --top-k, --top-p, --min-p"
        )
    if found.unmet and not quiet:
        click.echo(
            f"{found.origin} also asks for {', '.join(found.unmet)}, which dynaspec does not apply",
            err=True,
        )
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {
        name: value
        for name, value in found.filters.items()
        if context.get_parameter_source(name) is default
    }


def sampling_config(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> SamplingConfig:
    """The checked object; raises ``UsageError``."""
    return SamplingConfig(temperature, top_k, top_p, min_p, seed)


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
    return _compose(*_DRAFTING)(tree_filling_options(function))


class NumbersType(click.ParamType):
    """Whole numbers between commas; a list in a configuration file."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            return tuple(int(part) for part in parts)
        except ValueError:
            name = param.opts[0] if param is not None else "option"
            raise UsageError(
                f"{name}: expected whole numbers between commas, got {value}"
            ) from None


class AcceptanceType(click.ParamType):
    """``auto`` (None), probabilities between commas, or a JSON file of them."""

    name = "acceptance"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...] | None:
        if isinstance(value, list | tuple):
            return tuple(float(part) for part in value)
        return None if value == "auto" else read_vector(str(value), "--tree-acceptance")


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

    return _compose(*_FILLING)(wrapper)


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
