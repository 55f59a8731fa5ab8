"""``dynaspec generate --prompt-file FILE.jsonl --out FILE.jsonl``: many prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynaspec_cli.commands.options import CommonOptions
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target.sharded.launch import launched

if TYPE_CHECKING:
    from dynaspec_cli.batch.answer import BatchRequest
    from dynaspec_cli.batch.prompts import BatchPrompt
    from dynaspec_cli.config import GenerationConfig

INTERRUPTED = 130
SUFFIX = ".jsonl"


def is_batch(
    prompt_file: str | None, out: Path | None, workers: int | None, ray: str | None
) -> bool:
    """Are many prompts asked for? Raises UsageError where half of what they need is."""
    many = prompt_file is not None and prompt_file.endswith(SUFFIX)
    if many and out is None:
        raise UsageError(f"--prompt-file {prompt_file}: many prompts need --out FILE{SUFFIX}")
    for name, value in (("--out", out), ("--workers", workers), ("--ray", ray)):
        if value is not None and not many:
            raise UsageError(f"{name}: needs many prompts, --prompt-file FILE{SUFFIX}")
        if value is not None and name != "--out" and launched() is not None:
            raise UsageError(
                f"{name}: not under torchrun, whose processes share one model; give one of them"
            )
    if workers is not None and workers < 1:
        raise UsageError(f"--workers: expected at least 1, got {workers}")
    return many


def run_batch(
    common: CommonOptions,
    config: GenerationConfig,
    *,
    prompt_file: str,
    out: Path,
    chat: bool,
    system: str | None,
    chat_arguments: Mapping[str, Any],
    drafter: str,
    drafter_option: Sequence[str],
    workers: int | None,
    ray: str | None,
) -> None:
    """Answer what --out does not hold yet; exit code 1 where any prompt failed."""
    from dynaspec_cli.batch.answer import BatchRequest
    from dynaspec_cli.batch.prompts import read_prompts
    from dynaspec_cli.batch.results import ResultsFile
    from dynaspec_cli.ui.batch import BatchBar
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.interrupt import Interruption

    prompts = read_prompts(Path(prompt_file))
    request = BatchRequest(
        config,
        chat,
        system,
        common.model,
        common.dtype,
        common.device,
        common.threads,
        drafter,
        tuple(drafter_option),
        dict(chat_arguments),
    )
    with ResultsFile(out) as results:
        left = [prompt for prompt in prompts if prompt.key not in results.done]
        done = len(prompts) - len(left)
        if done and not common.quiet:
            click.echo(f"{out} holds {done} of {len(prompts)} results; going on", err=True)
        if left:
            with Interruption() as interruption:
                lines = _lines(common, left, request, workers, ray, interruption.should_stop)
                with BatchBar(not common.quiet, len(prompts), done) as bar:
                    for line in lines:
                        results.append(line)
                        bar.show(line)
        missing = sum(prompt.key not in results.done for prompt in prompts)
        failed = results.failed
    if common.json:
        print_json(
            {
                "schema": 1,
                "out": str(out),
                "prompts": len(prompts),
                "answered": len(prompts) - missing - failed,
                "failed": failed,
            }
        )
    if missing:
        click.get_current_context().exit(INTERRUPTED)
    if failed:
        raise DynaSpecError(f'{failed} of {len(prompts)} prompts failed; see "error" in {out}')


def _lines(
    common: CommonOptions,
    prompts: Sequence[BatchPrompt],
    request: BatchRequest,
    workers: int | None,
    ray: str | None,
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    if ray is not None:
        from dynaspec_cli.batch import on_ray

        count = workers or 1
        return on_ray.run(ray, count, prompts, request, should_stop)
    if workers is not None:
        import torch

        from dynaspec_cli.batch import workers as processes

        threads = request.threads or max(1, torch.get_num_threads() // workers)
        return processes.run(workers, prompts, replace(request, threads=threads), should_stop)
    from dynaspec_cli.batch import serial
    from dynaspec_cli.commands.loading import load_engine

    engine = load_engine(common, request.drafter, request.drafter_option, tell=True)
    return serial.run(engine, prompts, request, should_stop)
