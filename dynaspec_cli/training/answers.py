"""Answers of the target to prompts, a line each as ``generate --prompt-file FILE.jsonl`` writes
them: resumable, by key, in a file a temperature, whoever writes them.

Engines side by side or on a Ray cluster write all of them before the training (``Writers``). Else
the teacher continues a batch of prompts whenever a shard of them is due: one machine then writes
many times as fast as one prompt after the other would be, and features fall out of it.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from dynaspec_cli.engine.events import SCHEMA
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.events import LoadProgress, ProgressCallback
from dynaspec_cli.training.prompts import NEW_TOKENS, TEMPERATURES, PromptBatch
from dynaspec_cli.training.stamp import claim

STAMP = "answers-source.txt"
"""What the answers of a folder are to, as a digest."""


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

    def lines(self, prompts: Sequence[BatchPrompt]) -> Iterator[dict[str, Any]]:
        """Results as they come."""
        request = BatchRequest(
            GenerationConfig(NEW_TOKENS, sampling=SamplingConfig(seed=self.seed)),
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


class Answers:
    """What the files of ``folder`` hold of the answers to ``batches``, which are answered again and
    again: passing t has the numbers from t * len(batches) on, and temperatures moved on by t.

    ``ends``: the tokens that end a text. ``made_by``: says the model; the folder of another one, or
    of other prompts, is refused.
    """

    def __init__(
        self, batches: Sequence[PromptBatch], folder: Path, ends: Sequence[int], made_by: str
    ) -> None:
        self.batches, self.folder, self.ends = batches, folder, frozenset(ends)
        digest = hashlib.sha256(made_by.encode())
        for batch in batches:
            digest.update(batch.tokens.numpy().tobytes())
        self._source = digest.hexdigest()
        self._is_read = False
        self._found: dict[str, Tensor] = {}  # int32: a run may have a million tokens of them
        self._failed: set[str] = set()
        self._files: dict[float, ResultsFile] = {}
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        """Give the files back; they are opened again when a line is written."""
        self._open.close()
        self._files.clear()

    def of(self, index: int) -> PromptBatch | None:
        """Batch ``index`` with its answers, without those of its prompts that failed; None where
        some are not written yet, or all failed."""
        self._read()
        keys = [prompt.key for prompt in self._prompts(index)]
        if not all(key in self._found or key in self._failed for key in keys):
            return None
        rows = [row for row, key in enumerate(keys) if key in self._found]
        if not rows:
            return None
        # Behind the end of a text nothing is trained on; it is repeated up to the length.
        written = torch.empty(len(rows), NEW_TOKENS, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids = self._found[keys[row]]
            written[place, : len(ids)], written[place, len(ids) :] = ids, ids[-1]
        batch = self.batches[index % len(self.batches)]
        return PromptBatch(batch.tokens[rows], batch.groups[rows], written)

    def write(self, writers: Writers, progress: ProgressCallback) -> list[PromptBatch]:
        """All batches with their answers, of which ``writers`` write what is not there. Prompts
        that fail are left out. Raises DynaSpecError where all do."""
        self._read()
        prompts = [prompt for i in range(len(self.batches)) for prompt in self._prompts(i)]
        left = [p for p in prompts if p.key not in self._found and p.key not in self._failed]
        names = {prompt.key: prompt for prompt in left}
        done = len(prompts) - len(left)
        try:
            for line in writers.lines(left) if left else ():
                self._keep(names[result_key(line)], line)
                done += 1
                progress(LoadProgress("the target's answers", done / len(prompts)))
        finally:
            self.close()
        found = [self.of(index) for index in range(len(self.batches))]
        if not (answered := [batch for batch in found if batch is not None]):
            raise DynaSpecError(
                f"--prompts: no prompt could be answered; see {self.folder}/answers-*.jsonl"
            )
        return answered

    def keep(self, index: int, written: Tensor) -> None:
        """Lines of what the teacher has ``written``, int64 [N, NEW_TOKENS], each up to the end of
        its text."""
        self._read()
        for prompt, row in zip(self._prompts(index), written.tolist(), strict=True):
            if prompt.key not in self._found and prompt.key not in self._failed:
                end = next((i for i, token in enumerate(row, 1) if token in self.ends), len(row))
                self._keep(prompt, {**prompt.name, "schema": SCHEMA, "token_ids": row[:end]})

    def _prompts(self, index: int) -> list[BatchPrompt]:
        turn, place = divmod(index, len(self.batches))
        return [
            BatchPrompt(
                row + 1,
                f"{index}-{row}",
                tokens=tuple(ids),
                temperature=TEMPERATURES[(row + turn) % len(TEMPERATURES)],
            )
            for row, ids in enumerate(self.batches[place].tokens.tolist())
        ]

    def _keep(self, prompt: BatchPrompt, line: dict[str, Any]) -> None:
        assert prompt.temperature is not None
        self._file(prompt.temperature).append(line)
        self._note(line)

    def _file(self, temperature: float) -> ResultsFile:
        if temperature not in self._files:
            file = ResultsFile(self._path(temperature))
            self._files[temperature] = self._open.enter_context(file)
        return self._files[temperature]

    def _path(self, temperature: float) -> Path:
        return self.folder / f"answers-{temperature}.jsonl"

    def _read(self) -> None:
        """What an earlier run has left, once."""
        if self._is_read:
            return
        claim(
            self.folder / STAMP,
            self._source,
            f"--out: {self.folder} holds answers of another model or --dtype, or to other "
            "--prompts; give the same as before, or another --out",
        )
        for temperature in dict.fromkeys(TEMPERATURES):
            path = self._path(temperature)
            if path.is_file():
                self._file(temperature)  # cuts off a line that a kill tore
                for line in path.read_text(encoding="utf-8").splitlines():
                    self._note(json.loads(line))
        self._is_read = True

    def _note(self, line: dict[str, Any]) -> None:
        if line.get("token_ids"):
            self._found[result_key(line)] = torch.tensor(line["token_ids"], dtype=torch.int32)
        else:
            self._failed.add(result_key(line))
