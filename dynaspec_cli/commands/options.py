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
from dynaspec_cli.config import SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.registry import Registry
from dynaspec_cli.shortlist import names as shortlists
from dynaspec_cli.tree.registry import TREES

F = TypeVar("F", bound=Callable[..., Any])

DTYPES = ("auto", "packed", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class CommonOptions:
    """The options that every command has. ``model`` None: the embedded default model."""

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
    """A name of a registry; what is unknown is refused as the registry does."""

    def __init__(self, registry: Registry[Any]) -> None:
        super().__init__(registry.names())
        self.registry = registry

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        self.registry.check(str(value))
        return str(value)


class ShortlistType(click.ParamType):
    """A method's name, the path of a bundle folder or token-map file, or NAME=FOLDER."""

    name = "shortlist"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(shortlists.NAMES)}|PATH]"

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
    click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: PyTorch's]"),
    click.option("--seed", type=int, metavar="N", default=0, help="Seed of every random choice."),
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
        help="TOML file with options; environment variables and flags override it.",
    ),
)


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the common options; the command receives them as ``common: CommonOptions``."""

    @functools.wraps(function)
    def wrapper(**params: Any) -> Any:
        values = {name: params.pop(name) for name in CommonOptions.__dataclass_fields__}
        common = CommonOptions(**values)
        if common.threads is not None and common.threads < 1:
            raise UsageError(f"--threads: expected at least 1, got {common.threads}")
        return function(common=common, **params)

    return _compose(*_COMMON)(wrapper)


_SAMPLING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--temperature", type=float, metavar="T", default=0.0, help="0 is greedy decoding."
    ),
    click.option(
        "--top-k", type=int, metavar="K", default=0, help="Keep the K best tokens; 0: all."
    ),
    click.option("--top-p", type=float, metavar="P", default=1.0, help="Nucleus; 1: off."),
    click.option(
        "--min-p",
        type=float,
        metavar="P",
        default=0.0,
        help="Drop tokens below P times the best one's probability; 0: off.",
    ),
)


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--temperature --top-k --top-p --min-p``; see ``sampling_config``."""
    return _compose(*_SAMPLING)(function)


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

_TREE = TreeConfig()
_DRAFTING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--drafter",
        metavar="auto|none|FOLDER|HUB-NAME",
        default="auto",
        help="auto: the one shipped for the target; none: autoregressive decoding.",
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
        "--shortlist-size", type=int, metavar="N", help="Tokens.  [default: the method's own]"
    ),
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
        default=_TREE.size,
        help="Nodes verified in one target pass, the root not counted.",
    ),
    click.option(
        "--tree-depth", type=int, metavar="N", default=_TREE.depth, help="Levels below the root."
    ),
    click.option(
        "--tree-width", type=int, metavar="N", default=_TREE.width, help="Children of a node."
    ),
    click.option(
        "--tree-threshold",
        type=float,
        metavar="P",
        help="Probability below which drafting stops (dyspec, ddd).  [default: dyspec 2 / "
        "--tree-size, ddd 0.74]",
    ),
)


def drafting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--drafter``, ``--shortlist`` and ``--tree``, each with its own options."""
    return _compose(*_DRAFTING)(function)


def tree_config(
    tree: str, tree_size: int, tree_depth: int, tree_width: int, tree_threshold: float | None
) -> TreeConfig:
    """The checked object; raises ``UsageError``."""
    return TreeConfig(tree, tree_size, tree_depth, tree_width, tree_threshold)


def shortlist_config(shortlist: str, shortlist_size: int | None) -> ShortlistConfig:
    """The checked object; raises ``UsageError``."""
    return ShortlistConfig(shortlist, shortlist_size)
