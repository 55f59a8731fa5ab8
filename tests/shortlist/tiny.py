"""Tiny targets and bundles, with which every policy runs on a vocabulary of a few tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.bundle import BundleConfig, ShortlistBundle
from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.protocols import DraftTree, Shortlist, Target
from dynaspec_cli.shortlist import registry
from dynaspec_cli.weights.weight import Weight, dense

POLICIES = registry.SHORTLISTS.names()


@dataclass
class TinyOutput:
    """A target pass with given logits [n, V]."""

    features: Tensor
    values: Tensor
    cheap_rows: int | None = None
    rows_ranked: Tensor | None = None

    def logits(self, rows: Tensor | None = None) -> Tensor:
        return self.values if rows is None else self.values[rows]

    def logits_at(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        return self.values[rows, token_ids]

    def argmax(self, rows: Tensor | None = None) -> Tensor:
        return self.logits(rows).argmax(-1)

    def leaders(self, k: int, rows: Tensor | None = None) -> Tensor:
        return torch.topk(self.logits(rows), k).indices


class TinyTarget:
    """Random head and embeddings; only what a shortlist reads of a target."""

    name = "tiny"
    max_context = 1 << 20
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, vocab_size: int = 97, hidden_size: int = 8, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.head = torch.randn(vocab_size, hidden_size, generator=g)
        self.hash = f"tiny-{vocab_size}-{hidden_size}-{seed}"

    def head_weight(self) -> Weight:
        return dense(self.head)

    def head_hash(self) -> str:
        return self.hash

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.head[token_ids]

    def norm(self, features: Tensor) -> Tensor:
        return features

    def output(self, features: Tensor) -> TinyOutput:
        return TinyOutput(features, features @ self.head.t())


def tiny_bundle(
    target: Target | TinyTarget, clusters: int = 4, router: str = "mlp", seed: int = 0
) -> ShortlistBundle:
    """A bundle with random orders, clusters (of unequal size, one of them empty where possible) and
    router for any target."""
    g = torch.Generator().manual_seed(seed)
    vocab, hidden = target.vocab_size, target.hidden_size
    clusters = min(clusters, vocab)
    borders = torch.sort(torch.randint(0, vocab + 1, (clusters - 1,), generator=g)).values
    offsets = torch.cat([torch.tensor([0]), borders, torch.tensor([vocab])])
    width = {"mlp": 2 * hidden, "token": hidden}.get(router)
    weights: dict[str, Tensor] | None = {"w2": torch.randn(clusters, hidden, generator=g)}
    assert weights is not None
    weights["b2"] = torch.randn(clusters, generator=g)
    if width is not None:
        weights["w1"] = torch.randn(hidden, width, generator=g)
        weights["b1"] = torch.randn(hidden, generator=g)
    config = BundleConfig(
        method="dynaspec",
        target=target.name,
        vocab_size=vocab,
        hidden_size=hidden,
        head_hash=target.head_hash(),
        router=router,
        num_clusters=clusters,
        shortlist_size=max(1, vocab // 3),
    )
    return ShortlistBundle(
        config,
        frequency=torch.randperm(vocab, generator=g),
        generated=torch.randperm(vocab, generator=g),
        cluster_tokens=torch.randperm(vocab, generator=g),
        cluster_offsets=offsets,
        router=weights if router != "none" else None,
    )


def tiny_shortlist(
    policy: str, target: Target | TinyTarget, size: int | None = None, **options: object
) -> Shortlist:
    """Any policy for any target, without files: orders and clusters are random."""
    vocab = target.vocab_size
    if size is None and policy != "full":
        size = max(1, vocab // 3)
    router = str(options.pop("router", "mlp"))
    head = str(options.pop("draft_head", "stored"))
    return registry.create(
        ShortlistConfig(policy, size if policy != "full" else None, head),
        target,  # type: ignore[arg-type]
        tiny_bundle(target, router=router),
        **options,  # type: ignore[arg-type]
    )


def random_tree(vocab_size: int, nodes: int, generator: torch.Generator) -> DraftTree:
    tokens = torch.randint(0, vocab_size, (nodes + 1,), generator=generator)
    parents = [-1] + [
        int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, nodes + 1)
    ]
    return DraftTree(tokens, torch.tensor(parents))
