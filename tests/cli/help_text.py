"""docs/guide/cli.md from ``--help``: ``python -m tests.cli.help_text`` writes it, a test compares
it."""

from __future__ import annotations

from pathlib import Path

import click

from dynaspec_cli.main import cli

HEAD = """# Command line

Made from `--help` by `python -m tests.cli.help_text`; a test checks that it is current.

Results go to standard output, progress and messages to standard error. Options also come from the
environment (`DYNASPEC_` and the option's name in capitals, `-` as `_`) and from a TOML file:

```toml
# dynaspec generate --config FILE; file < environment < flag
model = "path/to/model"     # common options stand at the top

[generate]                  # other options in the table of their command
max-new-tokens = 64
stop = ["###"]
```

Exit codes: 0 done; 1 failed, with one line on standard error; 2 usage; 3 an exactness check found a
difference that is no numerical tie; 130 interrupted (what was generated so far is kept).
"""


def help_document(group: click.Group) -> str:
    """The page for ``group`` and all its subcommands, at a width of 96 columns."""
    parts = [HEAD]
    settings = {**group.context_settings, "terminal_width": 96}
    with click.Context(group, info_name="dynaspec", **settings) as root:
        parts.append(f"## dynaspec\n\n```text\n{group.get_help(root)}\n```\n")
        for name in group.list_commands(root):
            command = group.get_command(root, name)
            if command is None:
                raise LookupError(name)
            context = click.Context(
                command, root, name, terminal_width=96, **command.context_settings
            )
            parts.append(f"## dynaspec {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "docs" / "guide" / "cli.md"
    target.write_text(help_document(cli), encoding="utf-8")
