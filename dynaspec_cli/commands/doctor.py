"""``dynaspec doctor``: options and printing; dynaspec_cli/doctor finds the facts."""

from __future__ import annotations

import click

from dynaspec_cli.commands.drafting import (
    DRAFTER_OPTION,
)
from dynaspec_cli.commands.options import (
    CommonOptions,
    common_options,
)
from dynaspec_cli.errors import UsageError

DEFAULT_CONTEXT = 4096


@click.command(
    epilog="""\b
Examples:
  dynaspec doctor
  dynaspec doctor --model FOLDER --context 8192
  dynaspec doctor --drafter FOLDER --no-measure --json
"""
)
@click.option(
    "--drafter",
    metavar="auto|FOLDER|FILE.gguf",
    default="auto",
    help="Drafter to inspect; auto: the one shipped for the model.",
)
@DRAFTER_OPTION
@click.option(
    "--context",
    type=int,
    metavar="N",
    default=DEFAULT_CONTEXT,
    help="Tokens of prompt and text together that the memory estimate is for.",
)
@click.option(
    "--measure/--no-measure",
    default=True,
    help="Load the model and time the LM head and the drafter.",
)
@common_options
def doctor(
    common: CommonOptions,
    drafter: str,
    drafter_option: tuple[str, ...],
    context: int,
    measure: bool,
) -> None:
    """Say what runs where on this machine and why, what memory a model needs, which share of a
    draft step its LM head takes here, and what a dynamic shortlist can do for a drafter."""
    if context < 1:
        raise UsageError(f"--context: expected at least 1 token, got {context}")
    from dynaspec_cli.doctor.report import examine
    from dynaspec_cli.drafters.options import parse_options
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.progress import LoadBar

    with LoadBar(enabled=not common.quiet) as bar:
        facts = examine(
            model=common.model,
            dtype=common.dtype,
            device=common.device,
            threads=common.threads,
            drafter=drafter,
            context=context,
            measure=measure,
            progress=bar,
            drafter_options=parse_options(drafter_option),
        )
    if common.json:
        print_json(facts)
        return
    from dynaspec_cli.ui.diagnosis import print_facts

    print_facts(facts)
