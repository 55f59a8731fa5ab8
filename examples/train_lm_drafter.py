"""Trains a small language model as a drafter: a Llama of the target's tokenizer, a few million
parameters.

    python examples/train_lm_drafter.py SMOLLM2.gguf small-lm texts.jsonl.gz --minutes 60
    dynaspec generate --model SMOLLM2.gguf --drafter small-lm --chat "..."

It learns the next token of the corpus and, with ``--answers``, the target's own distribution over
texts that the target wrote: the shards of a ``dynaspec train-drafter`` run hold these with the
target's features, from which its LM head gives the distribution. The folder holds config.json,
model.safetensors and the tokenizer, as transformers loads them, and the run's checkpoint;
``--resume`` goes on from it.

Embeddings begin as the principal components of the target's, which is worth millions of tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lm_drafter_text import Answers, Corpus, replace_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynaspec_cli.target.load import load
from dynaspec_cli.target.tokenizer import TextTokenizer
from dynaspec_cli.training.shards import ended

CHECKPOINT = "checkpoint.safetensors"
STREAM = "corpus.safetensors"
BLOCK = 32
"""Rows of logits worked on at once: they stay in the cache."""

PROMPT_WEIGHT = 0.2
"""Of positions inside a prompt, which no drafter has to predict."""


# -- the loss ---------------------------------------------------------------------------------


class _ColumnLoss(torch.autograd.Function):
    """sum_i w_i (a H(p_i, q_i) + b TV(p_i, q_i)), q = softmax(h W^T + offset), with the gradients
    of h and W written down. Over the logits they are w a (q - p) and, where m = [q < p],
    - w b q (m - <q, m>); half of a batch's logits need not be kept for them."""

    @staticmethod
    def forward(
        context: Any,
        h: Tensor,
        columns: Tensor,
        offset: Tensor,
        p: Tensor,
        weight: Tensor,
        tv: float,
    ) -> Tensor:
        logits = F.linear(h, columns)
        total = torch.zeros(())
        for at in range(0, len(h), BLOCK):
            rows = slice(at, at + BLOCK)
            part, wanted, w = logits[rows].add_(offset), p[rows], weight[rows, None]
            norm = torch.logsumexp(part, -1, keepdim=True)
            entropy = norm[:, 0] - torch.einsum("nc,nc->n", wanted, part)
            q = part.sub_(norm).exp_()
            overlap = torch.minimum(wanted, q).sum(-1)
            total += (weight[rows] * ((1 - tv) * entropy + tv * (1 - overlap))).sum()
            gradient = (q - wanted) * (1 - tv)
            if tv:
                below = (q < wanted).float()
                share = torch.einsum("nc,nc->n", q, below)[:, None]
                gradient -= tv * q * (below - share)
            logits[rows] = gradient.mul_(w)
        context.save_for_backward(logits @ columns, logits.t() @ h)
        return total

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:
        of_h, of_columns = context.saved_tensors
        return of_h * grad, of_columns * grad, None, None, None, None


@dataclass(frozen=True)
class Columns:
    """Tokens in a step's softmax: the frequent ones and the batch's own for certain, others by lot
    with their logits raised by log(those left out / those drawn), so that the normaliser is right
    on average and rare tokens are pushed down too."""

    ids: Tensor
    offset: Tensor

    @classmethod
    def of(cls, certain: Tensor, vocab: int, drawn: int, draw: torch.Generator) -> Columns:
        left = torch.ones(vocab, dtype=torch.bool)
        left[certain] = False
        rest = left.nonzero()[:, 0]
        if drawn >= rest.numel():
            return cls(torch.cat([certain, rest]), torch.zeros(vocab))
        chosen = rest[torch.randperm(rest.numel(), generator=draw)[:drawn]]
        raised = torch.full((drawn,), rest.numel() / drawn).log()
        return cls(torch.cat([certain, chosen]), torch.cat([torch.zeros(certain.numel()), raised]))


# -- the run ----------------------------------------------------------------------------------


class Run:
    """Model, optimiser and what they learn from, in one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.out
        self.target, self.tokenizer = load(options.model, "bfloat16", "cpu")
        self.head = self.target.head_weight().float()
        self.folder.mkdir(parents=True, exist_ok=True)
        _save_tokenizer(self.tokenizer, self.folder)
        self.corpus = Corpus(options.corpus, self.tokenizer, self.folder / STREAM)
        counts = torch.bincount(self.corpus.stream.long(), minlength=len(self.head))
        self.frequent = counts.topk(options.columns).indices
        self.answers = Answers(options.answers, self.folder / "answers")
        torch.manual_seed(0)
        self.model = _model(options, self.target, self.tokenizer)
        table = self.model.get_input_embeddings().weight
        with torch.no_grad():
            table.copy_(principal(self.head, options.width))
        inner = [p for p in self.model.parameters() if p is not table]
        matrices = [p for p in inner if p.dim() > 1]
        others = [table, *(p for p in inner if p.dim() == 1)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": 0.01, "scale": 1.0},
                {"params": others, "weight_decay": 0.0, "scale": 0.5},
            ],
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = self.tokens = 0
        if options.resume:
            self.resume()

    def train(self) -> None:
        begun = said = saved = time.monotonic()
        limit = self.options.minutes * 60
        entropy = 0.0
        first = self.step + 1
        while True:
            now = time.monotonic()
            over = now - begun >= limit
            if over or now - saved >= self.options.save_minutes * 60:
                self.save()
                saved = time.monotonic()
            if over:
                return
            left = 1 - (now - begun) / limit
            rate = self.options.learning_rate * min(1.0, (self.step + 1) / 100)
            loss = self.update(rate * max(0.03, min(1.0, left / self.options.decay_share)))
            entropy = loss if self.step == first else 0.98 * entropy + 0.02 * loss
            if now - said >= 60:
                said = now
                print(
                    f"step {self.step}, {self.tokens / 1e6:.2f} M tokens, loss {entropy:.3f}, "
                    f"{len(self.answers.files)} shards, {(now - begun) / 60:.0f} min",
                    flush=True,
                )

    def update(self, rate: float) -> float:
        draw = torch.Generator().manual_seed(self.step)
        if self.step % 50 == 0:
            self.answers.refresh()
            self.pool = self.answers.rows(held_out=False)
        if self.pool and float(torch.rand((), generator=draw)) < self.options.answers_share:
            loss, count = self.of_answers(draw)
        else:
            loss, count = self.of_corpus(draw)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            sys.exit(f"step {self.step}: the loss is {float(loss)}; lower --learning-rate")
        self.optimizer.step()  # an interrupt in here is one step's noise
        self.step += 1
        self.tokens += count
        return float(loss.detach())

    def of_corpus(self, draw: torch.Generator) -> tuple[Tensor, int]:
        length = self.options.length
        tokens = self.corpus.batch(self.options.batch_tokens // length, length, draw)
        hidden = self.model.model(tokens[:, :-1]).last_hidden_state.flatten(0, 1)
        columns = self.columns(tokens, draw)
        place = torch.full((len(self.head),), -1)
        place[columns.ids] = torch.arange(columns.ids.numel())
        p = F.one_hot(place[tokens[:, 1:].flatten()], columns.ids.numel()).float()
        weight = torch.full((len(hidden),), 1 / len(hidden))
        return self.loss(hidden, columns, p, weight, 0.0), tokens[:, 1:].numel()

    def of_answers(self, draw: torch.Generator) -> tuple[Tensor, int]:
        path = self.pool[int(torch.randint(len(self.pool), (), generator=draw))][0]
        rows = [row for p, row in self.pool if p == path]
        length = self.answers.read(path, rows[:1])[0].shape[1]
        order = torch.randperm(len(rows), generator=draw)
        chosen = order[: max(1, self.options.batch_tokens // length)].tolist()
        tokens, features, prompt = self.answers.read(path, [rows[i] for i in chosen])
        hidden = self.model.model(tokens).last_hidden_state
        going = ~ended(tokens, prompt, self.tokenizer.eos_ids)
        weight = going.float()
        weight[:, : prompt - 1] *= PROMPT_WEIGHT
        keep = weight.flatten() > 0
        columns = self.columns(tokens, draw)
        with torch.no_grad():
            known = self.known(features.flatten(0, 1)[keep])
            p = torch.softmax(F.linear(known, self.head[columns.ids]) + columns.offset, -1)
        weight = weight.flatten()[keep]
        loss = self.loss(
            hidden.flatten(0, 1)[keep], columns, p, weight / weight.sum(), self.options.tv
        )
        return loss, int(keep.sum())

    def known(self, features: Tensor) -> Tensor:
        """What the target's head reads, float32 [n, d]."""
        return self.target.norm(features.float().contiguous()).float()

    def columns(self, tokens: Tensor, draw: torch.Generator) -> Columns:
        certain = torch.cat([self.frequent, tokens.flatten()]).unique()
        return Columns.of(certain, len(self.head), self.options.drawn, draw)

    def loss(
        self, hidden: Tensor, columns: Columns, p: Tensor, weight: Tensor, tv: float
    ) -> Tensor:
        rows = self.model.get_input_embeddings().weight[columns.ids]
        found: Tensor = _ColumnLoss.apply(hidden, rows, columns.offset, p, weight, tv)
        return found

    @torch.inference_mode()
    def score(self, limit: int = 600) -> dict[str, float]:
        """On held-out answers, over the whole vocabulary: how often the best token is the target's,
        and sum_v min(p, q), the chance that a draw at temperature 1 is accepted."""
        same = overlap = count = 0.0
        head = self.model.get_input_embeddings().weight
        for path, rows in itertools.groupby(self.answers.rows(held_out=True), lambda row: row[0]):
            tokens, features, prompt = self.answers.read(path, [row for _, row in rows])
            hidden = self.model.model(tokens).last_hidden_state
            keep = ~ended(tokens, prompt, self.tokenizer.eos_ids)
            keep[:, : prompt - 1] = False
            known = self.known(features[keep])
            for ours, theirs in zip(hidden[keep].split(256), known.split(256), strict=True):
                q, p = (F.linear(ours, head), F.linear(theirs, self.head))
                same += float((q.argmax(-1) == p.argmax(-1)).sum())
                overlap += float(torch.minimum(q.softmax(-1), p.softmax(-1)).sum())
                count += len(ours)
            if count >= limit:
                break
        return {
            "positions": count,
            "top1": same / max(count, 1),
            "overlap": overlap / max(count, 1),
        }

    # -- files --------------------------------------------------------------------------------

    def save(self) -> None:
        """The checkpoint, then the model as transformers loads it."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:
                    tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        facts = {"step": str(self.step), "tokens": str(self.tokens)}
        replace_file(
            self.folder / CHECKPOINT, lambda path: save_file(tensors, path, metadata=facts)
        )
        weights = {name: p.detach().to(torch.bfloat16) for name, p in self.model.named_parameters()}
        replace_file(
            self.folder / "model.safetensors",
            lambda path: save_file(weights, path, metadata={"format": "pt"}),
        )
        config = {**self.model.config.to_dict(), "dtype": "bfloat16"}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        replace_file(
            self.folder / "config.json", lambda path: path.write_text(text, encoding="utf-8")
        )
        print(f"saved at step {self.step}: {json.dumps(self.score())}", flush=True)

    def resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.is_file():
            sys.exit(f"--resume: {self.folder} holds no {CHECKPOINT}; leave --resume out to begin")
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        self.step, self.tokens = int(facts["step"]), int(facts["tokens"])
        for name, parameter in self.model.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }
        self.answers.refresh()
        self.pool = self.answers.rows(held_out=False)


def _model(options: argparse.Namespace, target: Any, tokenizer: TextTokenizer) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 32,
        num_key_value_heads=options.width // 32,
        max_position_embeddings=target.max_context,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=list(tokenizer.eos_ids),
        tie_word_embeddings=True,
    )
    config.architectures = ["LlamaForCausalLM"]
    return LlamaForCausalLM(config).float().train()


def _save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """The target's, as transformers loads it."""
    from transformers import PreTrainedTokenizerFast

    def text(number: int | None) -> str | None:
        return None if number is None else str(tokenizer.backend.id_to_token(number))

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        bos_token=text(tokenizer.bos_id),
        eos_token=text(tokenizer.eos_ids[0] if tokenizer.eos_ids else None),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)


def principal(embedding: Tensor, width: int) -> Tensor:
    """[V, width]: the embedding [V, d] in its ``width`` strongest directions, entries of about
    0.05."""
    centred = embedding - embedding.mean(0)
    _, vectors = torch.linalg.eigh(centred.t() @ centred)
    found = centred @ vectors[:, -width:].flip(1)
    return found * (0.05 / found.std())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="the target: as --model of dynaspec")
    parser.add_argument("out", type=Path)
    parser.add_argument("corpus", nargs="+", help="as --corpus of dynaspec train-drafter")
    parser.add_argument("--answers", type=Path, help="shards of a train-drafter run")
    parser.add_argument("--answers-share", type=float, default=0.5, help="of steps")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--width", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096, help="frequent tokens in the softmax")
    parser.add_argument("--drawn", type=int, default=1024, help="other tokens in it, by lot")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--decay-share", type=float, default=0.4)
    parser.add_argument(
        "--tv", type=float, default=0.0, help="share of total variation in the loss"
    )
    return parser.parse_args()


def main() -> None:
    run = Run(_options())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run.train()
    except KeyboardInterrupt:
        run.save()
        sys.exit(130)


if __name__ == "__main__":
    main()
