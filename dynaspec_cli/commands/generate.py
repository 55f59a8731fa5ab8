"""``dynaspec generate``: options and printing; the engine does the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynaspec_cli.commands.batch import is_batch, run_batch
from dynaspec_cli.commands.drafting import (
    drafting_options,
    shortlist_config,
    tree_config,
)
from dynaspec_cli.commands.loading import load_engine
from dynaspec_cli.commands.options import (
    CommonOptions,
    common_options,
    sampling_config,
    sampling_options,
)
from dynaspec_cli.commands.prompt import read_prompt, utf8_argument
from dynaspec_cli.commands.types import (
    ChatArgument,
    TextType,
)
from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.engine.events import DoneEvent, GenerationResult
from dynaspec_cli.errors import DynaSpecError, ExactnessError, UsageError

if TYPE_CHECKING:
    from dynaspec_cli.engine.api import Engine

INTERRUPTED = 130


@dataclass(frozen=True)
class Show:
    """What to run and print beside the request itself. ``speculative`` False: --drafter none;
    ``settings``: options that the engine does not see, for the result's settings."""

    stream: bool
    compare: bool
    speculative: bool
    settings: Mapping[str, Any]


@click.command(
    epilog="""\b
Examples:
  dynaspec generate "The capital of France is"
  dynaspec generate --model FOLDER --chat "Write a haiku about trees"
  dynaspec generate --max-new-tokens 64 --compare --json "1, 1, 2, 3, 5,"
  dynaspec generate --temperature 0.8 --top-p 0.95 --stop "###" < prompt.txt
  dynaspec generate --prompt-file prompts.jsonl --out answers.jsonl --workers 2

\b
Without PROMPT (or with -) the prompt comes from standard input. The text goes
to stdout, everything else to stderr. Ctrl-C ends the text; what was generated
is kept and the exit code is 130.
"""
)
@click.argument("prompt", required=False)
@click.option(
    "--prompt-file",
    metavar="FILE|-",
    help="Read the prompt from a file or standard input, without a line break at its end.  "
    "[default: PROMPT]",
)
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("--system", metavar="TEXT", help="System message; needs --chat.  [default: none]")
@click.option(
    "--chat-arg",
    type=ChatArgument(),
    metavar="KEY=VALUE",
    multiple=True,
    help="A variable of the chat template, as enable_thinking=false; needs --chat; repeatable.",
)
@click.option("--max-new-tokens", type=int, metavar="N", default=256, help="New tokens at most.")
@click.option(
    "--stop",
    type=TextType(),
    metavar="TEXT",
    multiple=True,
    help="End the text before this one; can be repeated.",
)
@click.option("--stream/--no-stream", default=True, help="Print text as it comes.")
@click.option(
    "--compare",
    is_flag=True,
    help="Also decode autoregressively: speedup, and whether the tokens are identical.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="A JSON line a prompt of --prompt-file FILE.jsonl; goes on where an earlier run stopped.  "
    "[default: print the one text]",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Number of engines side by side; needs --out.  [default: 1]",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Run them on this Ray cluster (or auto, local); needs --out.  [default: on this machine]",
)
@sampling_options
@drafting_options
@common_options
def generate(
    common: CommonOptions,
    prompt: str | None,
    prompt_file: str | None,
    chat: bool,
    system: str | None,
    chat_arg: Sequence[tuple[str, Any]],
    max_new_tokens: int,
    stop: Sequence[str],
    stream: bool,
    compare: bool,
    out: Path | None,
    workers: int | None,
    ray: str | None,
    drafter: str,
    drafter_option: Sequence[str],
    shortlist: str | None,
    shortlist_size: int | None,
    draft_head: str,
    tree: str,
    tree_size: int | None,
    tree_depth: int,
    tree_width: int,
    filling: dict[str, Any],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    """Continue PROMPT with a model, drafting over a shortlist of its vocabulary and verifying over
    all of it: the text is the one that the model alone would generate."""
    if system is not None and not chat:
        raise UsageError("--system: needs --chat")
    if chat_arg and not chat:
        raise UsageError("--chat-arg: needs --chat")
    if compare and drafter == "none":
        raise UsageError("--compare: needs a drafter, got --drafter none")
    if system is not None:
        utf8_argument("--system", system)
    config = GenerationConfig(
        max_new_tokens,
        tuple(utf8_argument("--stop", text) for text in stop),
        sampling_config(common.seed, temperature, top_k, top_p, min_p),
        tree_config(tree, tree_size, tree_depth, tree_width, filling),
        shortlist_config(shortlist, shortlist_size, draft_head),
    )
    if is_batch(prompt_file, out, workers, ray):
        if compare or prompt is not None:
            raise UsageError(f"{'--compare' if compare else 'PROMPT'}: goes with one prompt only")
        assert prompt_file is not None
        assert out is not None
        run_batch(
            common,
            config,
            prompt_file=prompt_file,
            out=out,
            chat=chat,
            system=system,
            chat_arguments=dict(chat_arg),
            drafter=drafter,
            drafter_option=drafter_option,
            workers=workers,
            ray=ray,
        )
        return
    text = read_prompt(prompt, prompt_file)
    engine = load_engine(common, drafter, drafter_option)
    if compare and engine.drafter is None:
        raise DynaSpecError(
            f"--compare: there is no drafter for {engine.target.name} to compare; "
            "train one with dynaspec train-drafter, then --drafter FOLDER"
        )
    arguments = dict(chat_arg)
    ids = _encode(engine, text, chat, system, arguments)
    seen: dict[str, Any] = {"chat": chat, "system": system, "stream": stream, "compare": compare}
    if arguments:
        seen["chat_arguments"] = arguments
    show = Show(stream, compare, drafter != "none", seen)
    result, interrupted = _run(engine, ids, config, common, show)
    if interrupted:
        click.get_current_context().exit(INTERRUPTED)
    _check_comparison(result, config)


def _encode(
    engine: Engine, text: str, chat: bool, system: str | None, arguments: Mapping[str, Any]
) -> list[int]:
    if not chat:
        return engine.encode(text)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return engine.tokenizer.chat([*messages, {"role": "user", "content": text}], **arguments)


def _run(
    engine: Engine,
    ids: list[int],
    config: GenerationConfig,
    common: CommonOptions,
    show: Show,
) -> tuple[GenerationResult, bool]:
    """The result as printed, and whether Ctrl-C ended it or its comparison."""
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.generation import GenerationView
    from dynaspec_cli.ui.interrupt import Interruption

    result: GenerationResult | None = None
    with GenerationView(stream=show.stream, text=not common.json, quiet=common.quiet) as view:
        view.note("reading the prompt")
        with Interruption() as interruption:
            for event in engine.generate(
                ids, config, speculative=show.speculative, should_stop=interruption.should_stop
            ):
                view.show(event)
                if isinstance(event, DoneEvent):
                    result = event.result
        if result is None:
            raise DynaSpecError("generation ended without a result")
        result = replace(result, settings={**result.settings, **show.settings})
        interrupted = result.finish_reason == "interrupted"
        if show.compare and not interrupted:
            view.note("decoding autoregressively for comparison")
            compared = _compare(engine, ids, result, config)
            interrupted = compared is None
            result = compared or result
        view.conclude(result)
    if common.json:
        print_json(result.to_json())
    return result, interrupted


def _compare(
    engine: Engine, ids: list[int], result: GenerationResult, config: GenerationConfig
) -> GenerationResult | None:
    """``result`` with its comparison; None after Ctrl-C."""
    try:
        compared = engine.compare(ids, result, config)
    except KeyboardInterrupt:
        return None
    comparison = compared.comparison
    if comparison is None or comparison.autoregressive.finish_reason == "interrupted":
        return None
    return compared


def _check_comparison(result: GenerationResult, config: GenerationConfig) -> None:
    """A greedy difference that is no numerical tie is a fault of ours: exit code 3."""
    found: Any = result.comparison and result.comparison.first_divergence
    if found and config.sampling.greedy and not found.tie:
        raise ExactnessError(
            f"the outputs differ at token {found.position} ({found.token_id} against "
            f"{found.ar_token_id}) with a logit gap of {found.logit_gap:.4f}, which is no tie; "
            "please report this with the output of --json"
        )
