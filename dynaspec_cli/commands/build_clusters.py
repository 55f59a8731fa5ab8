"""``dynaspec build-clusters``: builds the shortlist bundle of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from dynaspec_cli.commands.options import CommonOptions, common_options


@click.command(
    name="build-clusters",
    epilog="""\b
Examples:
  dynaspec build-clusters --corpus texts.jsonl.gz --out my-bundle --minutes 20
  dynaspec build-clusters --model ./llama --corpus texts.txt --router centroid --out llama-bundle
  dynaspec generate --shortlist my-bundle "Once upon a time"
""",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The bundle."
)
@click.option(
    "--method",
    type=click.Choice(("dynaspec", "fr-spec", "vocabtrim", "pa-fr")),
    default="dynaspec",
    help="What the bundle is for; dynaspec's serves the others too, as --shortlist NAME=DIR.",
)
@click.option(
    "--clusters", type=int, metavar="N", help="Token clusters.  [default: vocabulary / 128]"
)
@click.option(
    "--router",
    type=click.Choice(("mlp", "centroid", "token", "output")),
    default="mlp",
    help="output: best where the router runs in turn with the drafter, as on a CPU; mlp: runs "
    "beside it on CUDA; token: needs no features; centroid: needs no training.",
)
@click.option(
    "--corpus",
    multiple=True,
    required=True,
    metavar="FILE",
    help='Text: .txt, or .jsonl and .jsonl.gz with "text", or a hub dataset (200,000 texts of it). '
    "Repeatable.",
)
@click.option(
    "--shortlist-size",
    type=int,
    metavar="N",
    help="Tokens of a draft step where the bundle is used without a size.  "
    "[default: 1024 for dynaspec, else 32768]",
)
@click.option(
    "--minutes",
    type=float,
    metavar="N",
    help="Minutes for reading, writing and training, after which coverage is measured.  "
    "[default: 8 pieces of text and 2000 steps, however long they take]",
)
@click.option(
    "--drafter",
    default="auto",
    metavar="auto|none|FOLDER",
    help="Drafter whose features the router learns from; none: the target's own.",
)
@click.option("--resume", is_flag=True, help="Go on with the build in --out.")
@common_options
def build_clusters(
    common: CommonOptions,
    out: Path,
    method: str,
    clusters: int | None,
    router: str,
    corpus: tuple[str, ...],
    shortlist_size: int | None,
    minutes: float | None,
    drafter: str,
    resume: bool,
) -> None:
    """Build token orders, clusters and router for --model.

    Prints how often the target's token is covered by each kind of shortlist, by size, on text that
    was held out.
    """
    from dynaspec_cli.target.events import LoadProgress
    from dynaspec_cli.training.router_build import BuildConfig
    from dynaspec_cli.training.router_run import run
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.progress import LoadBar

    config = BuildConfig(
        out=out,
        corpus=corpus,
        method=method,
        clusters=clusters,
        router=router,
        shortlist_size=shortlist_size,
        minutes=minutes,
        resume=resume,
        seed=common.seed,
    )
    with LoadBar(not common.quiet) as bar:
        result = run(
            config,
            common.model,
            common.dtype,
            common.device,
            common.threads,
            lambda stage, share: bar(LoadProgress(stage, share)),
            drafter,
        )
    rows = [row.as_dict() for row in result.coverage]
    if common.json:
        report = {
            "schema": 1,
            "out": str(out),
            "method": method,
            "router": result.bundle.config.router,
            "clusters": result.bundle.config.num_clusters,
            "facts": {k: v for k, v in result.facts.items() if k != "coverage"},
            "coverage": rows,
        }
        print_json(report)
    else:
        sys.stdout.write(_table(rows))
        sys.stdout.write(f"{out}\n")


def _table(rows: list[dict[str, Any]]) -> str:
    """Coverage in percent: a line a policy, a column a size."""
    sizes = sorted({row["size"] for row in rows})
    cells = {(row["policy"], row["size"]): row["coverage"] for row in rows}
    lines = ["coverage of the target's top token on held-out text, %, by shortlist size"]
    lines.append(f"{'':12}" + "".join(f"{size:>8}" for size in sizes))
    for policy in dict.fromkeys(row["policy"] for row in rows):
        values = [cells.get((policy, size)) for size in sizes]
        shown = "".join(f"{'-' if v is None else f'{100 * v:.1f}':>8}" for v in values)
        lines.append(f"{policy:12}{shown}")
    return "\n".join(lines) + "\n"
