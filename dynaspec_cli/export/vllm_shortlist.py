"""The shortlist of a draft folder for vLLM: rows of the drafter's head, always in the same shapes.

    core      the most frequent tokens
    clusters  every other row, by k-means over the head, in clusters of equal size
    router    a linear one of the row that the head reads: the mean of a cluster's rows, so that a
              score is the cluster's mean logit

A ring of the latest tokens stands beside them in the engine and needs no file. The clusters of a
bundle differ in size, and its router may read what vLLM does not pass, so both are made anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.bundle import HOW_TO_BUILD, ShortlistBundle, is_bundle
from dynaspec_cli.checkpoints.token_map import load_token_map
from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.export.target_facts import TargetFacts
from dynaspec_cli.shortlist.clusters import Progress, build_clusters
from dynaspec_cli.shortlist.packaged import packaged_folder


@dataclass(frozen=True)
class ShortlistSizes:
    """``core`` rows always in; ``recent`` tokens remembered; ``taken`` clusters of ``cluster_size``
    rows for each row of a batch, 0: none."""

    core: int = 4096
    recent: int = 1024
    taken: int = 8
    cluster_size: int = 32

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--core", self.core, 1),
            ("--recent", self.recent, 0),
            ("--clusters", self.taken, 0),
            ("--cluster-size", self.cluster_size, 1),
        ):
            if value < least:
                raise UsageError(f"{option}: expected at least {least}, got {value}")


@dataclass(frozen=True)
class VllmShortlist:
    """``spec``: numbers for config.json; ``tensors``: "core" int32 [core], "clusters" int32 [M,
    cluster_size], filled up with -1, "router" float32 [M, d], "router_bias" float32 [M]."""

    spec: dict[str, Any]
    tensors: dict[str, Tensor]


def ranked_tokens(shortlist: str, target: TargetFacts) -> Tensor:
    """Token ids int64, most frequent first: of a bundle's folder, a token map's file, or "auto":
    the packaged bundle of the target."""
    path = Path(shortlist).expanduser()
    if shortlist == "auto":
        found = packaged_folder(target)
        if found is None:
            raise DynaSpecError(
                f"--shortlist auto: none ships for {target.name}; give a token map (.json, .txt, "
                f".pt), or the folder of a bundle: {HOW_TO_BUILD}"
            )
        path = found
    if path.is_file():
        return load_token_map(path, target.vocab_size).ids
    if not is_bundle(path):
        raise DynaSpecError(
            f"--shortlist {shortlist}: neither a token map's file nor a bundle's folder; make one: "
            f"{HOW_TO_BUILD}"
        )
    bundle = ShortlistBundle.from_pretrained(path)
    bundle.check_target(target)
    ids = bundle.frequency if bundle.frequency is not None else bundle.generated
    if ids is None:
        raise DynaSpecError(f"--shortlist {shortlist}: the bundle ranks no tokens")
    return ids.long()


def vllm_shortlist(
    sizes: ShortlistSizes,
    ranked: Tensor,
    head: Tensor,
    vocab: VocabMap | None,
    seed: int,
    progress: Progress | None = None,
) -> VllmShortlist:
    """Of ``head`` [R, d], whose row i is the token ``vocab.ids[i]`` (None: i). ``ranked``: token
    ids, most frequent first; tokens that are not ranked follow in order of their rows."""
    rows = ranked if vocab is None else vocab.rows()[ranked]
    rows = rows[rows >= 0]
    count = head.shape[0]
    if sizes.core > rows.numel():
        raise UsageError(
            f"--core: expected at most the {rows.numel()} ranked tokens that the drafter's head "
            f"has, got {sizes.core}"
        )
    core = rows[: sizes.core]
    spec = {"rows": count, "core": sizes.core, "recent": min(sizes.recent, count)}
    tensors = {"core": core.int()}
    left = torch.ones(count, dtype=torch.bool)
    left[core] = False
    if not sizes.taken:
        return VllmShortlist(spec | {"clusters": 0, "cluster_size": 0, "taken": 0}, tensors)
    number = -(-int(left.sum()) // sizes.cluster_size)
    if sizes.taken > number:
        raise UsageError(
            f"--clusters: expected at most {number}, which is all of the {int(left.sum())} rows "
            f"beside the core, got {sizes.taken}; take fewer, or 0"
        )
    rest = left.nonzero()[:, 0]
    position = torch.full((count,), -1, dtype=torch.int64)
    position[rest] = torch.arange(rest.numel())
    first = position[rows[sizes.core :]]
    late = torch.ones(rest.numel(), dtype=torch.bool)
    late[first] = False
    order = torch.cat([first, late.nonzero()[:, 0]])
    found = build_clusters(head[rest], number, order, balance=1.0, seed=seed, progress=progress)
    clusters, router = _equal(rest[found.tokens.long()], found.offsets, head)
    spec |= {"clusters": len(clusters), "cluster_size": clusters.shape[1], "taken": sizes.taken}
    tensors |= {"clusters": clusters.int(), "router": router}
    tensors["router_bias"] = torch.zeros(len(clusters))
    return VllmShortlist(spec, tensors)


def _equal(rows: Tensor, offsets: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """(clusters int64 [M, size] filled up with -1, means float32 [M, d]), the empty ones left
    out."""
    parts = [part for part in rows.split(torch.diff(offsets.long()).tolist()) if part.numel()]
    clusters = torch.full((len(parts), max(part.numel() for part in parts)), -1)
    for i, part in enumerate(parts):
        clusters[i, : part.numel()] = part
    return clusters, torch.stack([head[part].float().mean(0) for part in parts])
