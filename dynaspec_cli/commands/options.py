"""Options that several commands share, as decorators, and the settings objects made of them; those
of what drafts are in drafting.py.

Names, defaults and meanings are stated once, here. Checks of values are in ``dynaspec_cli.config``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dynaspec_cli import settings_file
from dynaspec_cli.commands.compose import compose
from dynaspec_cli.commands.registry import COMMANDS, DEBUG_KEY
from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError, UsageError

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

    return compose(*_COMMON)(wrapper)


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
            params |= recommended_filters(params["model"])
        return function(**params)

    return compose(*_SAMPLING)(wrapper)


def recommended_filters(model: str | None) -> dict[str, Any]:
    """The model's own filters, those left out that an option gives. What else it asks for is said
    when it is loaded."""
    from dynaspec_cli.target.recommended import recommended
    from dynaspec_cli.target.resolve import resolve_model

    source = resolve_model(model)
    found = recommended(source)
    if found is None:
        raise DynaSpecError(
            f"--sampling model: {source.name} comes with no recommendation "
            "(generation_config.json); give --temperature, --top-k, --top-p, --min-p"
        )
    return {name: value for name, value in found.filters.items() if not given_option(name)}


def given_option(name: str) -> bool:
    """Was a parameter of the running command given, by a flag, the environment or a file?"""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def sampling_config(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> SamplingConfig:
    """The checked object; raises ``UsageError``."""
    return SamplingConfig(temperature, top_k, top_p, min_p, seed)
