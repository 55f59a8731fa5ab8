"""The options of ``dynaspec bench`` alone, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dynaspec_cli.bench.presets import PRESETS
from dynaspec_cli.bench.prompts import FORMATS
from dynaspec_cli.bench.suites import BUILT_IN, NAMED
from dynaspec_cli.commands.compose import compose
from dynaspec_cli.commands.drafting import DRAFT_HEAD_OPTION, DRAFTER_OPTION
from dynaspec_cli.config import TreeConfig

DEFAULT_NEW_TOKENS = 128
SMOKE_NEW_TOKENS = 24
DEFAULT_TREE = TreeConfig()


@dataclass(frozen=True)
class Asked:
    """The command's own options as click read them; None where not given."""

    suite: tuple[str, ...]
    method: tuple[str, ...]
    preset: str | None
    sweep: tuple[str, ...]
    limit: int | None
    max_new_tokens: int | None
    max_prompt_tokens: int | None
    repeats: int | None
    warmup: int | None
    prompt_format: str
    system: str | None
    check_exact: bool | None
    out: Path | None
    resume: bool
    data_dir: Path | None
    drafter: str
    drafter_option: tuple[str, ...]
    draft_head: str
    tree_size: int
    tree_depth: int | None
    tree_width: int | None
    filling: dict[str, Any]
    measure_acceptance: bool
    assistant: str | None


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--suite",
        multiple=True,
        metavar="NAME|FILE.jsonl",
        help=f"Prompts; repeatable. Names: {', '.join(BUILT_IN + NAMED)}.  [default: smoke]",
    ),
    click.option("--method", multiple=True, metavar="SPEC", help="What to compare; repeatable."),
    click.option(
        "--preset",
        metavar="NAME",
        help=f"A paper's settings: {', '.join(PRESETS)}; flags override it.  [default: none]",
    ),
    click.option(
        "--list-presets", is_flag=True, help="Print the presets with their sources, and exit."
    ),
    click.option(
        "--sweep",
        multiple=True,
        metavar="AXIS=N,N,...",
        help="Run every method at every size; axes: shortlist-size, tree-size. Repeatable.",
    ),
    click.option("--limit", type=int, metavar="N", help="Prompts per task.  [default: all]"),
    click.option(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"New tokens a turn.  [default: {DEFAULT_NEW_TOKENS}; {SMOKE_NEW_TOKENS} for smoke]",
    ),
    click.option(
        "--max-prompt-tokens",
        type=int,
        metavar="N",
        help="Keep the first N tokens of a turn's text.  [default: all]",
    ),
    click.option(
        "--repeats", type=int, metavar="N", help="Measured runs of each prompt.  [default: 1]"
    ),
    click.option("--warmup", type=int, metavar="N", help="Discarded runs a method.  [default: 1]"),
    click.option(
        "--prompt-format",
        type=click.Choice(FORMATS),
        default="auto",
        help="auto: the chat template where the model has one, else raw.",
    ),
    click.option(
        "--system", metavar="TEXT", help="System message; needs a chat template.  [default: none]"
    ),
    click.option(
        "--check-exact/--no-check-exact",
        default=None,
        help="Compare greedy answers with ar's.  [default: on for the default run, else off]",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Write samples.jsonl, summary.json, report.md, report.html, provenance.json there.  "
        "[default: only print]",
    ),
    click.option("--resume", is_flag=True, help="Go on with a run that was killed in --out."),
    click.option(
        "--report-only",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Measure nothing: draw the report in DIR again from its samples.  [default: measure]",
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where the named suites lie: spec-bench is DIR/spec_bench.jsonl.  [default: none]",
    ),
    click.option(
        "--drafter",
        metavar="auto|none|packaged|lookup|NAME[+lookup]",
        default="auto",
        help="Drafter of specs that name none.",
    ),
    DRAFTER_OPTION,
    DRAFT_HEAD_OPTION,
    click.option(
        "--tree-size",
        type=int,
        metavar="N",
        default=DEFAULT_TREE.nodes,
        help="Nodes of specs without @NODES.",
    ),
    click.option(
        "--tree-depth",
        type=int,
        metavar="N",
        help=f"Levels of nodes of a tree.  [default: {DEFAULT_TREE.depth}]",
    ),
    click.option(
        "--tree-width",
        type=int,
        metavar="N",
        help=f"Child nodes of a node.  [default: {DEFAULT_TREE.width}]",
    ),
    click.option(
        "--measure-acceptance",
        is_flag=True,
        help="Measure the drafter's acceptance by position among siblings at --temperature and "
        "write it beside the drafter, for --tree sequoia; nothing else is run. Up to 10 siblings, "
        "or --tree-width. With --tree-draw or --draft-temperature of your own it is only printed.",
    ),
    click.option(
        "--assistant",
        metavar="NAME|FOLDER|FILE",
        help="Small language model for transformers-assisted (drafts of another vocabulary pass "
        "through text) and llama.cpp-draft (a GGUF file).  [default: none]",
    ),
)


def bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add them; the command receives the fields of ``Asked`` and what it prints instead."""
    return compose(*_OPTIONS)(function)
