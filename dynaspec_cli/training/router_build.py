"""``build-clusters`` from corpus to bundle: counts, text written by the target, clusters, router,
coverage.

Every expensive stage leaves its result in ``OUT/.build``, keyed by the settings it depends on, so
that a killed run goes on with ``resume`` where it stopped. Held-out texts (training/corpus.py)
enter no count and no example.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.bundle import BundleConfig, ShortlistBundle, is_bundle
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.shortlist.clusters import TokenClusters, build_clusters
from dynaspec_cli.shortlist.dynaspec import Split
from dynaspec_cli.target.cache_dir import write_text
from dynaspec_cli.training.router import RouterTraining, train_router
from dynaspec_cli.training.router_data import router_examples
from dynaspec_cli.training.router_report import CoverageRow, coverage_table, held_out_texts
from dynaspec_cli.training.shards import ShardConfig, ShardMaker
from dynaspec_cli.training.teacher import Teacher
from dynaspec_cli.training.texts import EncodedTexts, encode_texts

WORK_FOLDER = ".build"
HELD_OUT_TEXTS = 48
LEAST_HELD_OUT_TOKENS = 8
MAX_SHARDS = 64
RANKED_TOKENS = 65536
"""Tokens of an order that a bundle keeps; what was never counted follows in order of its id."""
SHARDS_SHARE, ROUTER_SHARE = 0.55, 0.3
"""Of ``minutes``: reading and writing text with the target, training the router."""

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class BuildConfig:
    """Settings of one build. ``clusters`` None: one per 128 tokens. ``minutes`` None: ``shards``
    shards of text and ``steps`` steps of the router."""

    out: Path
    corpus: tuple[str, ...]
    method: str = "dynaspec"
    clusters: int | None = None
    router: str = "mlp"
    shortlist_size: int | None = None
    minutes: float | None = None
    resume: bool = False
    seed: int = 0
    shards: int = 8
    steps: int = 2000
    hidden: int = 512
    shard_tokens: int = 24576

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"--minutes: expected more than 0, got {self.minutes}")
        if self.shortlist_size is not None and self.shortlist_size < 1:
            raise UsageError(f"--shortlist-size: expected at least 1, got {self.shortlist_size}")
        if self.clusters is not None and self.clusters < 1:
            raise UsageError(f"--clusters: expected at least 1, got {self.clusters}")


@dataclass(frozen=True)
class BuildResult:
    """What was built: the folder, facts, and coverage by policy and size on held-out text."""

    out: Path
    bundle: ShortlistBundle
    facts: dict[str, Any]
    coverage: list[CoverageRow]


def build(
    config: BuildConfig,
    target: Any,
    encode: Callable[[str], list[int]],
    progress: Progress,
    drafter: EagleDrafter | None = None,
    ends: Sequence[int] = (),
    bos_id: int | None = None,
) -> BuildResult:
    """Build the bundle of ``target`` (a ``TransformersTarget``) and save it in ``config.out``.

    ``encode``: text -> token ids. ``progress(stage, share)``. ``drafter``: whose predicted features
    the router learns from and coverage is measured with; None: the target's own stand in. ``ends``:
    tokens that end a text; with ``bos_id`` they lead every order of tokens. Raises DynaSpecError or
    UsageError for bad settings, an unusable corpus or a folder that cannot be written.
    """
    begun = time.monotonic()
    size = _checked_size(config, target.vocab_size)
    clusters_wanted = config.clusters or max(1, target.vocab_size // 128)
    if clusters_wanted > target.vocab_size:
        raise UsageError(
            f"--clusters: expected 1 to {target.vocab_size} (the vocabulary), got {clusters_wanted}"
        )
    work = _Work(config, target.head_hash())
    progress("reading the corpus", None)
    corpus = _read(config.corpus, encode, bos_id)
    teacher = Teacher(target)
    shard_config = ShardConfig(tokens=config.shard_tokens, seed=config.seed)
    maker = ShardMaker(
        teacher,
        corpus.texts,
        corpus.numbers(corpus.groups),
        shard_config,
        work.folder / "shards",
        ends=ends,
    )
    specials = [i for i in (*ends, bos_id) if i is not None]
    frequency = _first(specials, _ranked(maker.counts, torch.arange(target.vocab_size)))
    needs_text = config.method in ("dynaspec", "vocabtrim")
    if needs_text:
        maker.claim()
    count = _shards(config, work, maker, progress) if needs_text else 0
    generated = _first(specials, _generated(maker, count, frequency)) if count else None
    clusters, router, router_kind = None, None, "none"
    facts: dict[str, Any] = {
        "corpus_texts": len(corpus.texts),
        "corpus_tokens": int(maker.counts.sum()),
        "distinct_tokens": int((maker.counts > 0).sum()),
    }
    if config.method == "dynaspec":
        clusters = _clusters(config, work, teacher.head, clusters_wanted, frequency, progress)
        router_kind, router, trained = _router(
            config, work, target, maker, count, clusters, frequency, drafter, progress
        )
        facts.update(trained)
    facts["drafter_features"] = drafter is not None
    facts["seconds"] = round(time.monotonic() - begun, 1)
    keep = min(target.vocab_size, max(RANKED_TOKENS, size))
    bundle = ShortlistBundle(
        BundleConfig(
            method=config.method,
            target=target.name,
            vocab_size=target.vocab_size,
            hidden_size=target.hidden_size,
            head_hash=target.head_hash(),
            router=router_kind,
            num_clusters=0 if clusters is None else clusters.num_clusters,
            shortlist_size=size,
            split=Split().as_dict() if config.method == "dynaspec" else {},
            training=facts,
        ),
        frequency=frequency[:keep].to(torch.int32),
        generated=None if generated is None else generated[:keep].to(torch.int32),
        cluster_tokens=None if clusters is None else clusters.tokens,
        cluster_offsets=None if clusters is None else clusters.offsets,
        router=router,
        source=f"bundle {config.out}",
    )
    held = held_out_texts(teacher, corpus.held, corpus.held_groups, drafter, progress)
    rows = coverage_table(target, bundle, held, size, progress)
    bundle.config.training["coverage"] = [r.as_dict() for r in rows]
    bundle.save_pretrained(config.out)
    return BuildResult(config.out, bundle, facts, rows)


class _Work:
    """The folder of unfinished stages; files carry a digest of what they depend on."""

    def __init__(self, config: BuildConfig, head_hash: str) -> None:
        out = config.out
        if out.exists() and not out.is_dir():
            raise DynaSpecError(f"--out {out}: exists and is no folder")
        self.folder = out / WORK_FOLDER
        ours = self.folder.is_dir() or is_bundle(out)
        if out.is_dir() and any(out.iterdir()) and not (ours and config.resume):
            way = "--resume to go on with the build there, or " if ours else ""
            raise DynaSpecError(f"--out {out}: not empty; give {way}an empty or new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        key = {"head": head_hash, "corpus": list(config.corpus), "seed": config.seed}
        key["tokens"] = config.shard_tokens
        stamp = self.folder / "settings.json"
        if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) != key:
            raise DynaSpecError(
                f"--resume: the build in {out} was begun with another model, corpus or seed; give "
                "another --out"
            )
        write_text(stamp, json.dumps(key))

    @property
    def shards_done(self) -> Path:
        """How many shards the time was enough for, once that is known."""
        return self.folder / "shards.txt"

    def file(self, name: str, **depends: Any) -> Path:
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{name}-{digest}.safetensors"


def _checked_size(config: BuildConfig, vocab_size: int) -> int:
    from dynaspec_cli.shortlist.registry import DEFAULT_SIZES

    size = config.shortlist_size
    if size is None:
        return min(DEFAULT_SIZES[config.method], vocab_size)
    if size > vocab_size:
        raise UsageError(
            f"--shortlist-size: expected at most the vocabulary of {vocab_size} tokens, got {size}"
        )
    return size


def _read(
    sources: Sequence[str], encode: Callable[[str], list[int]], bos_id: int | None
) -> EncodedTexts:
    found = encode_texts(
        sources, encode, bos_id, held_out=HELD_OUT_TEXTS, least_held=LEAST_HELD_OUT_TOKENS
    )
    if not found.texts:
        raise DynaSpecError("--corpus: no text of two tokens or more to learn from; add text")
    if not found.held:
        # A corpus of a few texts: the last one is held out, if there is another to learn from.
        if len(found.texts) > 1:
            found.held.append(found.texts.pop())
            found.held_groups.append(found.groups.pop())
        else:
            raise DynaSpecError("--corpus: expected at least two texts, one to hold out; got one")
    return found


def _ranked(counts: Tensor, fallback: Tensor) -> Tensor:
    """All token ids by count, ties and uncounted ones in the order of ``fallback``."""
    order = torch.argsort(counts[fallback], descending=True, stable=True)
    return fallback[order]


def _first(specials: Sequence[int], order: Tensor) -> Tensor:
    """``order`` with the special tokens (end of text, ...) moved to its front: a shortlist that
    lacks the end can never propose it."""
    front = torch.tensor(sorted(set(specials)), dtype=torch.int64)
    return torch.cat([front, order[~torch.isin(order, front)]])


def _shards(config: BuildConfig, work: _Work, maker: ShardMaker, progress: Progress) -> int:
    """Make shards until the share of the time is used; returns how many there are. A build that is
    resumed takes as many as before: what comes after depends on them."""
    if config.minutes is not None and work.shards_done.is_file():
        return int(work.shards_done.read_text(encoding="utf-8"))
    begun = time.monotonic()
    wanted = config.shards if config.minutes is None else MAX_SHARDS
    for index in range(wanted):
        maker.get(index)
        share = (index + 1) / wanted
        if config.minutes is not None:
            share = (time.monotonic() - begun) / (60 * config.minutes * SHARDS_SHARE)
        progress("text read and written by the target", min(1.0, share))
        # Odd shards are the written ones, and both kinds are needed.
        if share >= 1 and index >= 1:
            wanted = index + 1
            break
    write_text(work.shards_done, str(wanted))
    return wanted


def _generated(maker: ShardMaker, count: int, frequency: Tensor) -> Tensor:
    """Token ids by their count in text that the target wrote (VocabTrim), then by corpus
    frequency."""
    counts = torch.zeros(frequency.numel(), dtype=torch.int64)
    for index in range(1, count, 2):
        shard = maker.get(index)
        written = shard.tokens[:, shard.prompt :].reshape(-1)
        counts += torch.bincount(written, minlength=counts.numel())
    return _ranked(counts, frequency)


def _clusters(
    config: BuildConfig,
    work: _Work,
    head: Tensor,
    count: int,
    frequency: Tensor,
    progress: Progress,
) -> TokenClusters:
    from safetensors.torch import load_file, save_file

    path = work.file("clusters", count=count, seed=config.seed)
    if path.is_file():
        kept = load_file(path)
        return TokenClusters(kept["tokens"], kept["offsets"], kept["centers"])
    found = build_clusters(head, count, frequency, seed=config.seed, progress=progress)
    parts = {"tokens": found.tokens, "offsets": found.offsets, "centers": found.centers}
    save_file(parts, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    return found


def _router(
    config: BuildConfig,
    work: _Work,
    target: Any,
    maker: ShardMaker,
    count: int,
    clusters: TokenClusters,
    frequency: Tensor,
    drafter: EagleDrafter | None,
    progress: Progress,
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    if config.router == "centroid":
        bias = torch.zeros(clusters.num_clusters)
        return "centroid", {"w2": clusters.centers.to(torch.bfloat16), "b2": bias}, {}
    settings = RouterTraining(
        kind=config.router, hidden=config.hidden, steps=config.steps, seed=config.seed
    )
    examples = router_examples(target, maker, count, frequency, drafter)
    depends: dict[str, Any] = {"kind": config.router, "hidden": config.hidden}
    depends |= {"steps": config.steps, "drafter": _drafter_key(drafter)}
    state = work.file("router", clusters=clusters.num_clusters, shards=count, **depends)
    weights, facts = train_router(
        settings,
        examples,
        clusters.labels(),
        clusters.centers,
        progress=progress,
        state_file=state,
        minutes=None if config.minutes is None else config.minutes * ROUTER_SHARE,
    )
    return config.router, weights, facts


def _drafter_key(drafter: EagleDrafter | None) -> str:
    """What tells one drafter's features from another's: a router learns from them."""
    weights = getattr(drafter, "fc", None)
    if weights is None:
        return "none"
    content = weights.detach().float().cpu().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:12]
