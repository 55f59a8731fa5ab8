"""The options of a request where a command answers many: packed into one object."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from dynaspec_cli.commands.drafting import (
    drafting_options,
    shortlist_config,
    tree_config,
)
from dynaspec_cli.commands.options import (
    common_options,
    sampling_config,
    sampling_options,
)
from dynaspec_cli.commands.prompt import utf8_argument
from dynaspec_cli.commands.types import (
    ChatArgument,
    TextType,
)
from dynaspec_cli.config import GenerationConfig

MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class RequestOptions:
    """``config`` of every request, the ``drafter`` asked for with its options, variables of the
    chat template; ``system``: None where not given."""

    config: GenerationConfig
    drafter: str
    drafter_option: Sequence[str]
    chat_arguments: Mapping[str, Any]
    system: str | None

    @property
    def speculative(self) -> bool:
        return self.drafter != "none"


def request_options(
    temperature: float, length_help: str, system: bool
) -> Callable[[Callable[..., Any]], Any]:
    """Add the options of a request and the common ones; the command receives ``common`` and
    ``request: RequestOptions``. ``temperature``: its default; ``system``: is there --system."""

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapper(common: Any, **params: Any) -> Any:
            values = {name: params.pop(name) for name in _NAMES if name in params}
            given = values.get("system")
            config = GenerationConfig(
                values["max_new_tokens"],
                tuple(utf8_argument("--stop", text) for text in values["stop"]),
                sampling_config(
                    common.seed,
                    values["temperature"],
                    values["top_k"],
                    values["top_p"],
                    values["min_p"],
                ),
                tree_config(
                    values["tree"],
                    values["tree_size"],
                    values["tree_depth"],
                    values["tree_width"],
                    values["filling"],
                ),
                shortlist_config(
                    values["shortlist"], values["shortlist_size"], values["draft_head"]
                ),
            )
            request = RequestOptions(
                config,
                values["drafter"],
                values["drafter_option"],
                dict(values["chat_arg"]),
                None if given is None else utf8_argument("--system", given),
            )
            return function(common=common, request=request, **params)

        options: Any = common_options(wrapper)
        options = drafting_options(options)
        options = sampling_options(options)
        for option in options.__click_params__:
            if option.name == "temperature":
                option.default = temperature
        options = click.option(
            "--stop",
            type=TextType(),
            metavar="TEXT",
            multiple=True,
            help="End a text before this one; can be repeated.",
        )(options)
        options = click.option(
            "--max-new-tokens", type=int, metavar="N", default=MAX_NEW_TOKENS, help=length_help
        )(options)
        options = click.option(
            "--chat-arg",
            type=ChatArgument(),
            metavar="KEY=VALUE",
            multiple=True,
            help="A variable of the chat template, as enable_thinking=false; repeatable.",
        )(options)
        if system:
            options = click.option(
                "--system", metavar="TEXT", help="System message.  [default: the template's own]"
            )(options)
        return options

    return decorate


_NAMES = (
    "max_new_tokens",
    "stop",
    "system",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "drafter",
    "drafter_option",
    "chat_arg",
    "filling",
    "shortlist",
    "shortlist_size",
    "draft_head",
    "tree",
    "tree_size",
    "tree_depth",
    "tree_width",
)
