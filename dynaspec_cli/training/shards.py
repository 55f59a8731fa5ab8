"""Training sequences with their features, made shard by shard and kept on disk until they are used
up.

Shard r is a function of the corpus, the settings and r alone, so a resumed run that finds one
missing makes the same again. Where there are prompts, every shard is a batch of them continued by
the target. Else even shards are corpus text as it stands; odd ones are short pieces of it continued
by the target.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.training.answers import Answers
from dynaspec_cli.training.prompts import NEW_TOKENS, TEMPERATURES, PromptBatch
from dynaspec_cli.training.stamp import claim
from dynaspec_cli.training.teacher import Teacher

FIRST_TOKENS = 1536
"""Of the first shard of a new run: a target reads or writes it within seconds."""

STAMP = "source.txt"
"""What the shards of a folder were made from, as a digest."""

WRITTEN_SHAPES = ((16, 128), (32, 112), (64, 112), (160, 96), (24, 120), (336, 160))
"""(prompt, continuation) lengths of generated shards, in turn."""


@dataclass(frozen=True)
class ShardConfig:
    """``tokens`` a shard, ``length`` of corpus sequences, ``columns``: frequent tokens generation
    chooses among. ``first``: tokens of the first shard, each one after it has twice as many until
    they have ``tokens``, so that training can begin at once; None: all have ``tokens``."""

    tokens: int = 24576
    length: int = 256
    columns: int = 40960
    seed: int = 0
    first: int | None = None

    def __post_init__(self) -> None:
        if self.length < 16 or self.tokens < self.length:
            raise UsageError(
                f"shards: expected 16 <= length <= tokens, got length {self.length}, tokens "
                f"{self.tokens}"
            )
        if self.first is not None and self.first < 1:
            raise UsageError(f"shards: expected at least 1 token in the first, got {self.first}")

    def __str__(self) -> str:
        """What stands in checkpoints and stamps: as it was before there was a ``first``."""
        last = "" if self.first is None else f", first={self.first}"
        return (
            f"ShardConfig(tokens={self.tokens}, length={self.length}, columns={self.columns}, "
            f"seed={self.seed}{last})"
        )

    def tokens_of(self, index: int) -> int:
        """Tokens of shard ``index``."""
        if self.first is None:
            return self.tokens
        return min(self.tokens, self.first << min(index, 32))


@dataclass(frozen=True)
class Shard:
    """tokens int64 [N, T], features [N, T, d], ``prompt``: leading tokens the target did not write
    (T for corpus text); ``groups``: per sequence, the corpus group it began in (index)."""

    tokens: Tensor
    features: Tensor
    prompt: int
    groups: Tensor


def ended(tokens: Tensor, prompt: int, ends: Sequence[int]) -> Tensor:
    """bool [N, T]: the target has ended the text at this token of tokens int64 [N, T] or before,
    behind the ``prompt``."""
    end = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype))
    end[:, :prompt] = False
    return end.cumsum(1) > 0


def _stored(path: Path, choose: Callable[[int, int], list[int]]) -> Shard:
    with safe_open(path, "pt") as file:
        tokens, groups = file.get_tensor("tokens"), file.get_tensor("groups")
        rows = choose(*tokens.shape)
        features = file.get_slice("features")
        return Shard(
            tokens[rows].long(),
            torch.cat([features[row : row + 1] for row in rows]),
            int(file.metadata()["prompt"]),
            groups[rows],
        )


class ShardMaker:
    """``texts``: token ids of each text (BOS first where the model wants one), ``groups``: a small
    integer for each; ``ends``: the tokens that end a text. ``answers`` to the ``prompts`` that the
    teacher writes are kept there."""

    def __init__(
        self,
        teacher: Teacher,
        texts: Sequence[Tensor],
        groups: Sequence[int],
        config: ShardConfig,
        folder: Path,
        prompts: Sequence[PromptBatch] = (),
        ends: Sequence[int] = (),
        answers: Answers | None = None,
    ) -> None:
        if not texts:
            raise DynaSpecError("train-drafter: the corpus holds no text to train on")
        self.teacher, self.config, self.folder = teacher, config, folder
        self.texts, self.groups, self.prompts, self.ends = texts, groups, prompts, tuple(ends)
        self.answers = answers
        self.counts = torch.bincount(torch.cat(list(texts)).long(), minlength=teacher.head.shape[0])
        wanted = min(config.columns, int((self.counts > 0).sum()))
        # A corpus holds no end of text, and a writer that cannot end writes past its answers.
        self.columns = self.frequent(wanted)
        self.length = min(config.length, teacher.max_length)
        self._pace: dict[int, float] = {}

    def frequent(self, count: int) -> Tensor:
        """int64, ascending: the ``count`` most frequent tokens, and those that end a text."""
        found = self.counts.topk(min(count, self.counts.numel())).indices
        return torch.cat([found, torch.tensor(self.ends, dtype=torch.int64)]).unique()

    def claim(self) -> None:
        """Mark the folder as this corpus', these prompts' and this model's; refuse it as
        another's, whose shards would be taken for these."""
        teacher = self.teacher
        made_by = f"{self.config}:{teacher.target.head_hash()}:{teacher.head.dtype}:{self.ends}"
        digest = hashlib.sha256(made_by.encode())
        for ids in (*self.texts, *(batch.tokens for batch in self.prompts)):
            digest.update(ids.numpy().tobytes())
        earlier = digest.copy()  # once told who wrote the answers, which does not matter
        for batch in self.prompts:
            if batch.answers is not None:
                earlier.update(batch.answers.numpy().tobytes())
        claim(
            self.folder / STAMP,
            digest.hexdigest(),
            f"--out: {self.folder} holds text of another model, --dtype, corpus, prompts or seed; "
            "give the same as before, or another --out",
            earlier.hexdigest(),
        )

    def get(
        self, index: int, choose: Callable[[int, int], list[int]] = lambda n, length: [*range(n)]
    ) -> Shard:
        """The sequences of shard ``index`` that ``choose`` names, given their number and length;
        from disk if it is there and whole, and no more of it read than those."""
        path = self.folder / f"shard-{index:06d}.safetensors"
        try:
            return _stored(path, choose)
        except (SafetensorError, OSError, KeyError):
            path.unlink(missing_ok=True)
        begun = time.perf_counter()
        shard = self.make(index)
        self._pace[self._kind(index)] = (time.perf_counter() - begun) / shard.tokens.numel()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        tensors = {
            "tokens": shard.tokens.to(torch.int32),
            "features": shard.features.cpu().contiguous(),
            "groups": shard.groups,
        }
        save_file(tensors, part, metadata={"prompt": str(shard.prompt)})
        part.replace(path)
        if self.answers is not None and self.answers.of(index) is None:
            # Only now that it is on disk: had it to be made again, then by the same way.
            self.answers.keep(index, shard.tokens[:, shard.prompt :])
        return _stored(path, choose)

    def tokens_of(self, index: int) -> int:
        """Tokens of shard ``index``; batches of prompts begin anew after the last."""
        if not self.prompts:
            return self.config.tokens_of(index)
        batch = self.prompts[index % len(self.prompts)].tokens
        return batch.numel() + len(batch) * NEW_TOKENS

    def _kind(self, index: int) -> int:
        """Shards of one kind take equally long a token."""
        return 0 if self.prompts else index % 2

    def seconds_to_get(self, index: int) -> float:
        """What ``get`` will take: 0 where the shard is on disk, or of a kind never made."""
        if (self.folder / f"shard-{index:06d}.safetensors").exists():
            return 0.0
        return self._pace.get(self._kind(index), 0.0) * self.tokens_of(index)

    def forget(self, index: int) -> None:
        """Delete a shard that is no longer drawn from."""
        (self.folder / f"shard-{index:06d}.safetensors").unlink(missing_ok=True)

    def make(self, index: int) -> Shard:
        if self.prompts:
            turn, place = divmod(index, len(self.prompts))
            batch = self.prompts[place]
            found = batch if self.answers is None else self.answers.of(index)
            if found is None or found.answers is None:
                return self._continued(index, batch.tokens, NEW_TOKENS, batch.groups, turn)
            tokens = torch.cat([found.tokens, found.answers], 1)
            return Shard(tokens, self._features(tokens), tokens.shape[1] - NEW_TOKENS, found.groups)
        return self._read(index) if index % 2 == 0 else self._write(index)

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + index)

    def _read(self, index: int) -> Shard:
        """Packed corpus text: pieces of texts in a random order, end to end."""
        count = max(1, self.config.tokens_of(index) // self.length)
        generator = self._generator(index)
        rows: list[Tensor] = []
        groups: list[int] = []
        pool = iter(
            torch.randint(len(self.texts), (count * 64 + 64,), generator=generator).tolist()
        )
        buffer: list[Tensor] = []
        held, group = 0, 0
        while len(rows) < count:
            text = next(pool, None)
            if text is None:
                break
            if not buffer:
                group = self.groups[text]
            buffer.append(self.texts[text][: 4 * self.length])
            held += buffer[-1].numel()
            while held >= self.length and len(rows) < count:
                joined = torch.cat(buffer)
                rows.append(joined[: self.length])
                groups.append(group)
                buffer, held = [joined[self.length :]], joined.numel() - self.length
                group = self.groups[text]
        if not rows:
            raise DynaSpecError(
                f"train-drafter: the corpus is too small for one sequence of {self.length} "
                "tokens; add text"
            )
        tokens = torch.stack(rows).long()
        return Shard(tokens, self._features(tokens), self.length, torch.tensor(groups))

    def _features(self, tokens: Tensor) -> Tensor:
        """[N, T, d] of tokens int64 [N, T]."""
        device = self.teacher.head.device
        return torch.cat([self.teacher.read(part.to(device)).cpu() for part in tokens.split(16)])

    def _write(self, index: int) -> Shard:
        """Beginnings and middles of texts, continued by the target."""
        prompt, new = WRITTEN_SHAPES[(index // 2) % len(WRITTEN_SHAPES)]
        prompt = min(prompt, self.teacher.max_length // 2)
        new = min(new, self.teacher.max_length - prompt)
        count = max(1, self.config.tokens_of(index) // (prompt + new))
        generator = self._generator(index)
        prompts, groups = [], []
        for text in torch.randint(len(self.texts), (count * 400,), generator=generator).tolist():
            ids = self.texts[text]
            if ids.numel() < prompt:
                continue
            # Half begin where the text does, half in its middle behind the first token (BOS).
            begin = 0
            if ids.numel() > prompt and float(torch.rand((), generator=generator)) < 0.5:
                begin = int(torch.randint(1, ids.numel() - prompt + 1, (), generator=generator))
            piece = ids[begin : begin + prompt].clone()
            piece[0] = ids[0]
            prompts.append(piece)
            groups.append(self.groups[text])
            if len(prompts) == count:
                break
        if not prompts:
            return self._read(index)
        return self._continued(index, torch.stack(prompts).long(), new, torch.tensor(groups))

    def _continued(
        self, index: int, prompts: Tensor, new: int, groups: Tensor, turn: int = 0
    ) -> Shard:
        """Prompts int64 [N, P] continued at the temperatures in turn, from the ``turn``-th on."""
        device = self.teacher.head.device
        kinds = [TEMPERATURES[(i + turn) % len(TEMPERATURES)] for i in range(prompts.shape[0])]
        drawn = torch.Generator(device=device).manual_seed(self.config.seed * 1_000_003 + index)
        tokens, features = self.teacher.write(
            prompts.to(device),
            new,
            torch.tensor(kinds, device=device),
            drawn,
            self.columns.to(device),
        )
        return Shard(tokens.cpu(), features.cpu(), prompts.shape[1], groups)
