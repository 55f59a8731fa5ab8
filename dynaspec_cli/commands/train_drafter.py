"""``dynaspec train-drafter``: trains the drafter of a model."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynaspec_cli.commands.options import CommonOptions, common_options
from dynaspec_cli.training.loss_config import VARIATION, LossConfig

if TYPE_CHECKING:
    from dynaspec_cli.training.run import TrainingRun
    from dynaspec_cli.training.trainer import TrainProgress

INTERRUPTED = 130
STEPS = 20000
NO_LIMIT = 10**9
"""Where ``--minutes`` alone ends the run."""


@click.command(
    epilog="""\b
Examples:
  dynaspec train-drafter --corpus texts.jsonl.gz --out my-drafter --minutes 60
  dynaspec train-drafter --corpus texts.jsonl.gz --out my-drafter --minutes 60 --resume
  dynaspec generate --drafter my-drafter "Once upon a time"
"""
)
@click.option(
    "--corpus",
    multiple=True,
    required=True,
    metavar="FILE",
    help='Text (.txt), or JSON lines with "text" (.jsonl, .jsonl.gz), or a hub dataset '
    "(200,000 texts of it); repeatable",
)
@click.option(
    "--prompts",
    multiple=True,
    metavar="FILE",
    help="Prompts, one a text: train on the model's answers, not on the corpus; repeatable.",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Engines that write the answers to --prompts before training, into --out.  "
    "[default: the trainer's own, as it goes]",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Write them on this Ray cluster (or auto, local), with --workers actors.  "
    "[default: on this machine]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The run's and the drafter's folder.",
)
@click.option(
    "--steps",
    type=int,
    metavar="N",
    help="Optimiser steps in all.  [default: 20000, or as many as fit --minutes]",
)
@click.option(
    "--minutes",
    type=float,
    metavar="N",
    help="End after N minutes of wall-clock, loading and scoring included; the learning rate "
    "follows the clock.  [default: until --steps]",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Begin with the weights of this drafter.  [default: with the target's]",
)
@click.option(
    "--layers", type=int, metavar="N", help="Decoder layers of a new drafter.  [default: 1]"
)
@click.option(
    "--for",
    "engine",
    type=click.Choice(("dynaspec", "vllm")),
    show_default=False,
    help="Engine that will run it; vLLM passes a drafter less, so that one for vllm accepts fewer "
    "tokens here.  [default: dynaspec]",
)
@click.option(
    "--loss",
    type=click.Choice(tuple(VARIATION)),
    default="cross-entropy",
    help="What is minimised: cross-entropy to the target's distribution, total variation (one "
    "minus the probability that a drawn token is accepted), or half of each.",
)
@click.option(
    "--unroll", type=int, metavar="N", default=3, help="Draft steps that a loss looks ahead."
)
@click.option(
    "--batch-tokens", type=int, metavar="N", default=1024, help="Tokens of an optimiser step."
)
@click.option(
    "--passes", type=float, metavar="X", default=2.0, help="Times that a token is trained on."
)
@click.option("--learning-rate", type=float, metavar="R", default=1e-3, help="Peak learning rate.")
@click.option(
    "--save-every",
    type=int,
    metavar="N",
    default=200,
    help="Optimiser steps between checkpoints and held-out scores.",
)
@common_options
def train_drafter(
    common: CommonOptions,
    corpus: tuple[str, ...],
    prompts: tuple[str, ...],
    workers: int | None,
    ray: str | None,
    out: Path,
    steps: int | None,
    minutes: float | None,
    resume: bool,
    start: Path | None,
    layers: int | None,
    engine: str | None,
    loss: str,
    unroll: int,
    batch_tokens: int,
    passes: float,
    learning_rate: float,
    save_every: int,
) -> None:
    """Train an EAGLE-style drafter for --model on text and on what the model writes itself.

    Checkpoints go to --out; a killed run goes on with --resume and, given --steps, ends where it
    would have ended; given --minutes, it goes on for so many more. The drafter there (config.json,
    model.safetensors) can be used at any time. Ctrl-C saves and scores it.
    """
    begun = time.perf_counter()  # the minutes are those of the whole command
    from dynaspec_cli.training.run import RunConfig, TrainingRun
    from dynaspec_cli.training.shards import FIRST_TOKENS, ShardConfig
    from dynaspec_cli.training.trainer import TrainConfig
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.progress import LoadBar
    from dynaspec_cli.ui.training import TrainingView

    config = RunConfig(
        model=common.model,
        corpus=corpus,
        prompts=prompts,
        workers=workers,
        ray=ray,
        out=out,
        dtype=common.dtype,
        device=common.device,
        threads=common.threads,
        layers=layers,
        engine=engine,
        minutes=minutes,
        resume=resume,
        start=start,
        score_every=save_every,
        train=TrainConfig(
            steps=steps if steps is not None else NO_LIMIT if minutes is not None else STEPS,
            batch_tokens=batch_tokens,
            passes=passes,
            unroll=unroll,
            learning_rate=learning_rate,
            save_every=save_every,
            seed=common.seed,
            loss=LossConfig(variation=VARIATION[loss]),
        ),
        shards=ShardConfig(seed=common.seed, first=FIRST_TOKENS),
    )
    last, interrupted = None, False
    with LoadBar(not common.quiet) as bar, TrainingView(not common.quiet, minutes) as view:
        run = TrainingRun(config, bar, begun)
        score = None
        try:
            for state in run.steps():
                bar.close()
                view.show(state)
                last, score = state, state.score or score
        except KeyboardInterrupt:
            interrupted = True
        bar.close()
        if interrupted and last is not None and last.score is None:
            last = _scored(run, last)
            view.show(last)
            score = last.score or score
    if interrupted:
        _say(_what_is_left(out, last), common)
        if last is None:
            click.get_current_context().exit(INTERRUPTED)
    assert last is not None
    if not last.losses:
        _say("nothing to do: the run has reached --steps; give more to prolong it", common)
    if common.json:
        result = {
            "schema": 1,
            "out": str(out),
            "steps": last.step,
            "tokens": last.tokens,
            "losses": list(last.losses),
            "tokens_per_second": last.tokens_per_second,
            "held_out_top1": None if score is None else list(score.top1),
            "held_out_chain_length": None if score is None else score.chain_length,
            "held_out_chain_length_by_group": None if score is None else score.by_group,
        }
        print_json(result)
    else:
        sys.stdout.write(f"{out}\n")
    if interrupted:
        click.get_current_context().exit(INTERRUPTED)


def _say(message: str, common: CommonOptions) -> None:
    if not common.quiet:
        click.echo(message, err=True)


def _scored(run: TrainingRun, state: TrainProgress) -> TrainProgress:
    """``state`` with the score of what was saved, unless a second Ctrl-C says no."""
    try:
        return replace(state, score=run.score())
    except KeyboardInterrupt:
        return state


def _what_is_left(out: Path, last: TrainProgress | None) -> str:
    if last is None:
        return "interrupted before the first step"
    return (
        f"interrupted after step {last.step}: the drafter in {out} can be used; the same command "
        "with --resume goes on"
    )
