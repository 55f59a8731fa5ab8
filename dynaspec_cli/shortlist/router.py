"""The router: scores of token clusters for a context.

Three inputs are possible. "mlp" reads what exists before the drafter's layer runs (the previous
feature and the new token's embedding), so that it can run beside it; "token" reads only embeddings
of the last token, for drafters that expose no features; "centroid" and "output" are linear in the
hidden row that the head itself reads, which is known only after the layer but says most. Scores are
float32 [n, M]; a cluster's score is comparable across rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynaspec_cli import ops

EARLY = ("mlp", "token")
"""Kinds that need nothing from the drafter's layer."""
LATE = ("centroid", "output")
"""Linear kinds that read what the head reads."""


def unit_rms(x: Tensor) -> Tensor:
    """``x / rms(x)`` over the last axis, float32."""
    x = x.float()
    return functional.rms_norm(x, (x.shape[-1],))


class Router:
    """``kind``: see the module. Weights as in ``ops.router_clusters``; w1 and b1 empty for linear
    kinds."""

    def __init__(self, kind: str, weights: dict[str, Tensor], device: torch.device) -> None:
        self.kind = kind
        empty = torch.empty(0)

        def put(name: str, floating: bool) -> Tensor:
            value = weights.get(name, empty)
            return (value.float() if floating else value).to(device).contiguous()

        self.w1, self.b1 = put("w1", False), put("b1", True)
        self.w2, self.b2 = put("w2", False), put("b2", True)

    @property
    def early(self) -> bool:
        return self.kind in EARLY

    @property
    def num_clusters(self) -> int:
        return int(self.w2.shape[0])

    def early_scores(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """Scores float32 [n, M] from parents' features [n, d] (before the final norm) and new
        tokens' embeddings [n, e]."""
        embeddings = unit_rms(embeddings)
        features = embeddings[:, :0] if self.kind == "token" else unit_rms(features)
        return ops.router_clusters(features, embeddings, self.w1, self.b1, self.w2, self.b2)

    def late_scores(self, hidden: Tensor) -> Tensor:
        """Scores float32 [n, M] from the rows [n, d] that the head reads."""
        return ops.router_clusters(hidden, hidden[:, :0], self.w1, self.b1, self.w2, self.b2)
