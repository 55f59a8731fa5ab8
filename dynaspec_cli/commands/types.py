"""Forms of options' values, read where the command line is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from dynaspec_cli.errors import UsageError
from dynaspec_cli.registry import Registry
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.tree.acceptance import read_vector


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
