"""The ``--config`` file: TOML; top-level keys are common options, a table belongs to a command.

    model = "path/to/model"
    [generate]
    max-new-tokens = 64
    stop = ["###"]

A key is a long option without its dashes; ``-`` and ``_`` are the same. Environment variables and
flags override the file. Unknown keys are errors, and so is a value of the wrong kind.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dynaspec_cli.errors import TEXT_ENCODING, UsageError

FILE_KEY = "dynaspec.file"
"""Where a context's ``meta`` holds the ``FileOptions``, for messages about values from the file."""

COMMON = ("model", "dtype", "device", "threads", "seed", "json", "quiet", "debug")
"""Options that may stand at the top level; a command that lacks one of them does not see it."""
NOT_IN_FILE = ("config", "help")


def read_settings(path: Path) -> dict[str, Any]:
    """The parsed file. Raises ``UsageError`` with one line where it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding=TEXT_ENCODING))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: expected UTF-8 text ({error.reason})") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {path}: no valid TOML: {error}") from error


@dataclass(frozen=True)
class FileOptions:
    """What a file gives a command: ``values`` by parameter name (Click's ``default_map``), and the
    ``places`` that they stand at. ``context``: the command's."""

    context: click.Context
    values: Mapping[str, Any]
    places: Mapping[str, str]

    def origin(self, error: Exception, message: str) -> str | None:
        """Where the value stands that an error is about, if it came from the file: that of the
        parameter at fault, else of the first option in the message that the file decided."""
        if isinstance(error, click.BadParameter) and error.param is not None:
            names = [error.param.name]
        else:
            flags = re.findall(r"(?<![\w-])--[a-z][\w-]*", message)
            known = {flag: p.name for p in self.context.command.params for flag in p.opts}
            names = [known[flag] for flag in flags if flag in known]
        for name in names:
            decided = self.context.get_parameter_source(str(name))
            if name in self.places and decided is click.core.ParameterSource.DEFAULT_MAP:
                return None if self.places[name] in message else self.places[name]
        return None


def file_options(
    settings: Mapping[str, Any], context: click.Context, path: Path, commands: Collection[str]
) -> FileOptions:
    """What the file gives the command of ``context``: its table over the top level.

    ``commands``: names that tables may have. Raises ``UsageError`` for what is unknown or wrong.
    """
    command = context.command
    options = _options(command)
    chosen: dict[str, Any] = {}
    places: dict[str, str] = {}

    def choose(option: click.Option, value: Any, place: str) -> None:
        chosen[str(option.name)] = _value(option, value, place)
        places[str(option.name)] = place

    common = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    for table, values in settings.items():
        if isinstance(values, dict) and table.replace("_", "-") not in commands:
            raise UsageError(
                f"--config {path}: unknown table [{table}]; expected one of {', '.join(commands)}"
            )
    for key, value in common.items():
        name = key.replace("-", "_")
        if name not in COMMON:
            raise UsageError(
                f"--config {path}: unknown key {key!r}; at the top level stand "
                f"{', '.join(COMMON)}, other options in the table of their command"
            )
        if name in options:
            choose(options[name], value, f"--config {path}: {key}")
    own: set[str] = set()
    name = command.name or ""
    for table in dict.fromkeys((name, name.replace("-", "_"))):
        for key, value in settings.get(table, {}).items():
            option = key.replace("-", "_")
            if option not in options:
                raise UsageError(
                    f"--config {path}: unknown key {key!r} in [{table}]; "
                    f"see the options of: dynaspec {name} --help"
                )
            if option in own:
                raise UsageError(f"--config {path}: {key!r} stands twice in [{table}]")
            own.add(option)
            choose(options[option], value, f"--config {path}: [{table}] {key}")
    return FileOptions(context, chosen, places)


def _options(command: click.Command) -> dict[str, click.Option]:
    found: dict[str, click.Option] = {}
    for param in command.params:
        if isinstance(param, click.Option):
            for flag in param.opts:
                name = flag.lstrip("-").replace("-", "_")
                if flag.startswith("--") and name not in NOT_IN_FILE:
                    found[name] = param
    return found


def _value(option: click.Option, value: Any, where: str) -> Any:
    """A TOML value in the form that Click converts and checks like a flag's."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: expected true or false, got {value!r}")
        return value
    if option.multiple:
        values = value if isinstance(value, list) else [value]
        return [_scalar(item, where) for item in values]
    return _scalar(value, where)


def _scalar(value: Any, where: str) -> str:
    """As text, so that 2.5 for an integer option is refused just as ``--option 2.5`` is."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{where}: expected a text or a number, got {value!r}")
    return str(value)
