"""``dynaspec export-vllm``: options and printing; dynaspec_cli/export does the work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from dynaspec_cli.commands.drafting import DRAFTER_OPTION
from dynaspec_cli.commands.options import CommonOptions, common_options
from dynaspec_cli.installing import VLLM_PLUGIN


@click.command(
    name="export-vllm",
    epilog=f"""\b
Examples:
  dynaspec export-vllm --model ./llama --drafter yuhuili/EAGLE-LLaMA3-Instruct-8B \\
    --shortlist llama-bundle --out draft
  dynaspec export-vllm --model ./llama --drafter my-drafter --shortlist freq.json --out draft
  dynaspec export-vllm --model ./llama --drafter ./small-llama --clusters 0 --out draft
\b
vLLM needs the plugin: {VLLM_PLUGIN}
""",
)
@click.option(
    "--drafter",
    required=True,
    metavar="NAME",
    help="A folder, hub name or .gguf file: an EAGLE-1, EAGLE-2 or EAGLE-3 head, a drafter of "
    "train-drafter --for vllm, or a small language model of the target's tokenizer.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The draft folder."
)
@click.option(
    "--shortlist",
    default="auto",
    metavar="DIR|FILE",
    help="Which tokens are frequent: the bundle of build-clusters or a token map (.json, .txt, "
    ".pt). auto: the packaged bundle of the target.",
)
@click.option(
    "--core", type=int, default=4096, metavar="N", help="Most frequent tokens, always scored."
)
@click.option(
    "--recent", type=int, default=1024, metavar="N", help="Latest tokens of the batch, scored too."
)
@click.option(
    "--clusters",
    type=int,
    default=8,
    metavar="N",
    help="Clusters that each row of a batch adds by their router; 0: none.",
)
@click.option("--cluster-size", type=int, default=32, metavar="N", help="Tokens of a cluster.")
@DRAFTER_OPTION
@common_options
def export_vllm(
    common: CommonOptions,
    drafter: str,
    out: Path,
    shortlist: str,
    core: int,
    recent: int,
    clusters: int,
    cluster_size: int,
    drafter_option: tuple[str, ...],
) -> None:
    """Write a drafter of --model with a shortlist as a draft folder for vLLM."""
    from dynaspec_cli.drafters.options import parse_options
    from dynaspec_cli.export.vllm_folder import VllmExport
    from dynaspec_cli.export.vllm_folder import export_vllm as exported
    from dynaspec_cli.export.vllm_shortlist import ShortlistSizes
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.progress import LoadBar

    sizes = ShortlistSizes(core, recent, clusters, cluster_size)
    export = VllmExport(
        common.model, drafter, out, shortlist, sizes, parse_options(drafter_option), common.seed
    )
    with LoadBar(enabled=not common.quiet) as bar:
        done = exported(export, bar)
    if common.json:
        print_json({"schema": 1, "drafter": drafter, "out": str(out), **done})
        return
    if not common.quiet:
        for note in done["notes"]:
            click.echo(f"Note: {note}", err=True)
        click.echo(f"{done['rows_scored']} of {done['rows']} rows scored for a row", err=True)
        config = shlex.quote(json.dumps(done["speculative_config"]))
        model = shlex.quote(common.model or done["target"])
        click.echo(f"vllm serve {model} --speculative-config {config}", err=True)
    click.echo(str(out))
