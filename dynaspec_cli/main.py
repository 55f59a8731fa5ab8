"""The ``dynaspec`` command: a lazy group, exit codes and one-line errors. Imports no torch."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TextIO

import click

from dynaspec_cli import __version__
from dynaspec_cli.commands.registry import COMMANDS, DEBUG_KEY
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.settings_file import FILE_KEY, FileOptions
from dynaspec_cli.target.sharded.launch import Launch, launched
from dynaspec_cli.ui.console import show_every_character
from dynaspec_cli.ui.interrupt import end, leave_at_once, terminate_as_ctrl_c

INTERRUPTED = 130


class LazyGroup(click.Group):
    """Imports a subcommand when it is called, and turns every failure into one line."""

    _debug = False
    _file: FileOptions | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if launched() is not None and not COMMANDS[name].sharded:
            able = ", ".join(other for other, entry in COMMANDS.items() if entry.sharded)
            raise UsageError(f"dynaspec {name}: runs in one process; torchrun is for {able}")
        command = COMMANDS[name].load()
        # DYNASPEC_MODEL rather than DYNASPEC_GENERATE_MODEL: an option means the same everywhere.
        command.context_settings.setdefault("auto_envvar_prefix", "DYNASPEC")
        command.context_settings.setdefault("show_default", True)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        finally:
            self._debug = bool(ctx.meta.get(DEBUG_KEY, False))
            self._file = ctx.meta.get(FILE_KEY)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run: Callable[[], Any] = partial(
            super().main, args, prog_name, complete_var, standalone_mode=False, **extra
        )
        if not standalone_mode:
            return run()
        self._debug, self._file = False, None
        try:
            code = run()
            sys.stdout.flush()
        except (click.Abort, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader went away (| head); nothing is left to say, and nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            self._fail(error)
        sys.exit(code if isinstance(code, int) else 0)

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
            sys.exit(error.exit_code)
        if self._debug:
            traceback.print_exception(error, file=sys.stderr)
        message, code = describe(error)
        if self._file is not None and (origin := self._file.origin(error, message)):
            message = f"{message} (from {origin})"
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(code)


def describe(error: Exception) -> tuple[str, int]:
    """(what to tell the user, exit code) of an exception."""
    if isinstance(error, DynaSpecError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "dynaspec"
        return f"{error.format_message().rstrip('.')} (see: {path} --help)", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" for {error.filename}" if error.filename else ""
        return f"No disk space is left{where}; free some, or set another cache folder", 1
    if _is_out_of_memory(error):
        return (
            "Out of memory; choose a smaller --model, --dtype bfloat16 or a shorter prompt "
            "(dynaspec doctor --model estimates what is needed)",
            1,
        )
    first = str(error).strip().splitlines()[:1]
    kind = type(error).__name__
    return f"Unexpected {': '.join([kind, *first])} (run again with --debug for the traceback)", 1


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a class of its own for CUDA alone: its CPU allocator raises a RuntimeError, and a
    mapping that the system refuses is an OSError."""
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  dynaspec generate "The capital of France is"
  dynaspec generate --compare --temperature 0.8 "Once upon a time"
  dynaspec bench --suite smoke
  dynaspec doctor

\b
Every option can also come from the environment (DYNASPEC_MAX_NEW_TOKENS=64)
or from a TOML file (--config FILE); file < environment < flag.
Exit codes: 0 done, 1 failed, 2 usage, 3 an exactness check found a
difference, 130 interrupted. Shell completion:
  eval "$(_DYNASPEC_COMPLETE=bash_source dynaspec)"
""",
)
@click.version_option(__version__, "--version", "-V", prog_name="dynaspec")
def cli() -> None:
    """Generate text with large-vocabulary language models faster, without changing what they
    generate: a drafter scores a context-dependent shortlist of the vocabulary, the target model
    verifies over all of it."""


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("quiet"):
        click.echo(f"Warning: {message}", err=True)


def main() -> NoReturn:
    """Entry point of the console script."""
    # Read when transformers is imported: its own chatter is no result and no error of ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", message="dynaspec")
        warnings.showwarning = _show_warning
    launch = _launch()
    if launch is not None and launch.rank > 0:
        from dynaspec_cli.target.sharded.follow import follow

        sys.exit(follow(launch, describe))
    terminate_as_ctrl_c()
    show_every_character()
    code: Any = INTERRUPTED
    try:
        cli.main(prog_name="dynaspec")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except KeyboardInterrupt:  # another one, while the first was met
        pass
    if launch is not None:
        from dynaspec_cli.target.sharded.load import leave

        leave(code)
    leave_at_once(code)
    end(code)


def _launch() -> Launch | None:
    try:
        return launched()
    except DynaSpecError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
