"""Loads the engine behind a progress bar."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dynaspec_cli.commands.options import CommonOptions

if TYPE_CHECKING:
    from dynaspec_cli.engine.api import Engine


def load_engine(
    common: CommonOptions,
    drafter: str,
    drafter_option: Sequence[str] = (),
    tell: bool = False,
) -> Engine:
    """The engine of ``--model`` and ``--drafter`` with its ``--drafter-option``s. ``tell``: print
    its notices, for commands that show no request's events."""
    from dynaspec_cli.target.gguf_tokenizer import begin_tokenizer

    begin_tokenizer(common.model)  # while torch is imported
    gc.disable()  # imports make much that stays: looking through it took a tenth of their time
    try:
        from dynaspec_cli.drafters.options import parse_options
        from dynaspec_cli.engine.api import Engine
        from dynaspec_cli.ui.progress import LoadBar
    finally:
        gc.freeze()
        gc.enable()

    with LoadBar(enabled=not common.quiet) as bar:
        engine = Engine.load(
            model=common.model,
            dtype=common.dtype,
            device=common.device,
            threads=common.threads,
            drafter=drafter,
            progress=bar,
            drafter_options=parse_options(drafter_option),
        )
    if tell and not common.quiet:
        for notice in engine.notices:
            click.echo(notice, err=True)
    return engine
