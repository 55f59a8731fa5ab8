"""Answers of the target to prompts, written by engines side by side or on a Ray cluster, as
``generate --prompt-file FILE.jsonl`` writes them: resumable, a line a prompt.

In one process the teacher continues a whole batch at a time while training goes on, which is faster
than one prompt after the other; over several machines this is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.batch.answer import BatchRequest
from dynaspec_cli.batch.prompts import BatchPrompt, result_key
from dynaspec_cli.batch.results import ResultsFile
from dynaspec_cli.config import GenerationConfig, SamplingConfig
from dynaspec_cli.engine.api import never
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.events import LoadProgress, ProgressCallback
from dynaspec_cli.training.prompts import NEW_TOKENS, PromptBatch
from dynaspec_cli.training.shards import TEMPERATURES


@dataclass(frozen=True)
class Writers:
    """``workers`` processes here, or so many actors of the cluster ``ray``. ``model`` to
    ``threads`` as their options say."""

    model: str | None
    dtype: str
    device: str
    threads: int | None
    seed: int
    workers: int = 1
    ray: str | None = None

    def lines(self, prompts: Sequence[BatchPrompt], temperature: float) -> Iterator[dict[str, Any]]:
        """Results as they come."""
        sampling = SamplingConfig(temperature=temperature, seed=self.seed)
        request = BatchRequest(
            GenerationConfig(NEW_TOKENS, sampling=sampling),
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads or max(1, torch.get_num_threads() // self.workers),
        )
        if self.ray is not None:
            from dynaspec_cli.batch import on_ray

            return on_ray.run(self.ray, self.workers, prompts, request, never)
        from dynaspec_cli.batch import workers

        return workers.run(self.workers, prompts, request, never)


def with_answers(
    batches: Sequence[PromptBatch], writers: Writers, folder: Path, progress: ProgressCallback
) -> list[PromptBatch]:
    """``batches`` with the answers that ``folder`` holds after this: a file a temperature, of which
    an interrupted run leaves what is done. Prompts that fail are left out. Raises DynaSpecError
    where all do."""
    wanted: dict[float, list[BatchPrompt]] = {t: [] for t in TEMPERATURES}
    for index, batch in enumerate(batches):
        for row, ids in enumerate(batch.tokens.tolist()):
            temperature = TEMPERATURES[row % len(TEMPERATURES)]
            name = f"{index}-{row}"
            wanted[temperature].append(BatchPrompt(row + 1, name, tokens=tuple(ids)))
    total, done = sum(map(len, wanted.values())), 0
    answers: dict[str, list[int]] = {}
    for temperature, prompts in wanted.items():
        path = folder / f"answers-{temperature}.jsonl"
        with ResultsFile(path) as results:
            left = [prompt for prompt in prompts if prompt.key not in results.done]
            done += len(prompts) - len(left)
            for line in writers.lines(left, temperature) if left else ():
                results.append(line)
                done += 1
                progress(LoadProgress("the target's answers", done / total))
        answers.update(_read(path))
    found = [_answered(index, batch, answers) for index, batch in enumerate(batches)]
    found = [batch for batch in found if len(batch.tokens)]
    if not found:
        raise DynaSpecError(f"--prompts: no prompt could be answered; see {folder}/answers-*.jsonl")
    return found


def _read(path: Path) -> dict[str, list[int]]:
    """Token ids of the answers of a file, by key."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {result_key(line): line["token_ids"] for line in lines if "error" not in line}


def _answered(index: int, batch: PromptBatch, answers: dict[str, list[int]]) -> PromptBatch:
    rows: list[int] = []
    ids: list[Tensor] = []
    for row in range(len(batch.tokens)):
        answer = answers.get(result_key({"id": f"{index}-{row}"}))
        if answer:
            # Behind the end of a text nothing is trained on; it is repeated up to the length.
            ids.append(torch.tensor([*answer, *answer[-1:] * (NEW_TOKENS - len(answer))]))
            rows.append(row)
    chosen = torch.tensor(rows, dtype=torch.int64)
    written = torch.stack(ids) if ids else torch.empty(0, NEW_TOKENS, dtype=torch.int64)
    return PromptBatch(batch.tokens[chosen], batch.groups[chosen], written)
