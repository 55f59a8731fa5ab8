"""``dynaspec convert``: options and printing; dynaspec_cli/convert does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dynaspec_cli.commands.drafting import (
    DRAFTER_OPTION,
)
from dynaspec_cli.commands.options import (
    CommonOptions,
    common_options,
)
from dynaspec_cli.errors import UsageError

FORMS = ("eagle", "speculators", "dynaspec", "token-map")


@click.command(
    epilog="""\b
Examples:
  dynaspec convert yuhuili/EAGLE3-LLaMA3.1-Instruct-8B eagle3-speculators --to speculators
  dynaspec convert speculators-folder eagle-folder --to eagle
  dynaspec convert freq_32768.pt map.json --to token-map
  dynaspec convert freq_32768.pt bundle --to dynaspec --model MODEL
  dynaspec convert eagle3-folder its-tokens.json --to token-map

\b
IN is a drafter's folder or hub name, a shortlist bundle, or a token map (.pt, .json,
.txt). A drafter's weights keep every bit. What a form cannot hold is refused by name.
"""
)
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(FORMS),
    required=True,
    help="eagle, speculators: a drafter's folder. dynaspec: of a token map the shortlist bundle "
    "for --model. token-map: the tokens of a map, a bundle or a head's own vocabulary.",
)
@DRAFTER_OPTION
@click.option(
    "--push-to-hub",
    metavar="ORG/NAME",
    help="Upload the drafter's folder there as well.  [default: no]",
)
@click.option("--private", is_flag=True, help="Make the hub repository a private one.")
@common_options
def convert(
    common: CommonOptions,
    source: str,
    out: Path,
    to: str,
    drafter_option: tuple[str, ...],
    push_to_hub: str | None,
    private: bool,
) -> None:
    """Write the drafter or token list IN as OUT, in another form."""
    from dynaspec_cli.convert.token_list import is_token_list, write_bundle, write_map
    from dynaspec_cli.drafters.options import parse_options
    from dynaspec_cli.ui.console import print_json

    options = parse_options(drafter_option)
    if private and push_to_hub is None:
        raise UsageError("--private: needs --push-to-hub")
    if to == "token-map" or is_token_list(source):
        if push_to_hub is not None:
            raise UsageError("--push-to-hub: expected a drafter, got a token list")
        if to == "token-map":
            done = write_map(source, out, options)
        else:
            done = write_bundle(source, out, to, common.model)
    else:
        done = _drafter(source, out, to, options, push_to_hub, private)
    if common.json:
        print_json({"schema": 1, "in": source, "out": str(out), "to": to, **done})
        return
    for note in [] if common.quiet else done.get("notes", []):
        click.echo(f"Note: {note}", err=True)
    click.echo(str(out))


def _drafter(
    source: str, out: Path, to: str, options: dict[str, str], hub_name: str | None, private: bool
) -> dict[str, Any]:
    from dynaspec_cli.convert.drafter import convert as converted
    from dynaspec_cli.drafters.checkpoint import DrafterCheckpoint

    read = DrafterCheckpoint.from_pretrained(source)
    made, notes = converted(read, to, options)
    made.save_pretrained(out)
    done = {"from": read.kind, "kind": made.kind, "tensors": len(made.tensors)}
    done |= {"bytes": made.num_bytes, "notes": list(notes)}
    if hub_name is not None:
        done["hub"] = made.push_to_hub(hub_name, private)
    return done
