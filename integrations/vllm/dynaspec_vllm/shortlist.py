"""The shortlist inside vLLM: which rows of the LM head a draft step scores.

    shared by all rows   the core, and a ring of the latest tokens that any sequence of the batch
                         read (prompts, accepted and drafted tokens alike)
    a row's own          ``taken`` clusters of equal size, by a linear router of the hidden row

vLLM may capture a draft step as a graph, so every shape follows from the config and the number of
rows, and everything that changes is a buffer on the device: no Python counter, no value read back.
The model's ``forward`` observes, ``get_top_tokens`` chooses; rows carry no request, hence the
union. A batch of B rows costs (core + recent) d bytes of weights once, and B * taken *
cluster_size of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynaspec_vllm.slices import slice_clusters, slice_core
from dynaspec_vllm.spec import DraftSpec

GATHERED = 1 << 24
"""Weights that clusters copy at once, at most: a large batch goes in parts."""


class Shortlist(nn.Module):
    """A rank's part. ``slices``: [begin, end) of the head's rows by rank (slices.py); ``width`` of
    a row. ``load`` fills it; until then it scores row 0."""

    core: Tensor
    ring: Tensor
    at: Tensor
    held: Tensor
    clusters: Tensor
    router: Tensor
    router_bias: Tensor

    def __init__(
        self,
        spec: DraftSpec,
        width: int,
        slices: list[tuple[int, int]] | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.spec, self.width = spec, width
        self.slices = slices or [(0, spec.rows)]
        self.rank = rank
        self.begin, end = self.slices[rank]
        self.rows = end - self.begin
        """Rows of the slice; as a row's number: none of them."""
        self.recent = min(spec.recent, self.rows)
        self.taken = spec.taken * len(self.slices)
        for name, value in (
            ("core", torch.zeros(1, dtype=torch.int64)),
            # The slot behind the ring takes what is not to be kept.
            ("ring", torch.full((self.recent + 1,), self.rows)),
            ("at", torch.zeros(1, dtype=torch.int64)),
            ("held", torch.ones(self.rows + 1, dtype=torch.bool)),
            ("clusters", torch.zeros(0, 1, dtype=torch.int64)),
            ("router", torch.zeros(0, width)),
            ("router_bias", torch.zeros(0)),
        ):
            self.register_buffer(name, value, persistent=False)

    def load(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        """The draft folder's tensors (spec.py), checked; ``dtype`` of the hidden rows. Raises
        DraftFolderError."""
        self.spec.check_tensors(tensors, self.width)
        device = self.ring.device
        self.core = slice_core(tensors["core"].cpu(), self.slices, self.rank).to(device)
        if self.spec.taken:
            rows, router, bias = slice_clusters(
                tensors["clusters"].cpu(),
                tensors["router"].cpu(),
                tensors["router_bias"].float().cpu(),
                self.slices,
                self.rank,
            )
            self.clusters = rows.to(device)
            self.router = router.to(device, dtype)
            self.router_bias = bias.to(device)
            self.taken = min(self.taken, len(rows))
        self.forget()

    def forget(self) -> None:
        """Empty the ring."""
        self.ring.fill_(self.rows)
        self.at.zero_()
        # Of a row that is held, nothing is kept twice; the row behind the slice is always held.
        self.held.zero_()
        self.held[self.core] = True
        self.held[self.rows] = True

    @property
    def scored(self) -> int:
        """Rows that are scored for a hidden row."""
        own = self.taken * self.clusters.shape[1] if self.spec.taken else 0
        return self.core.numel() + self.recent + own

    def observe(self, rows: Tensor) -> None:
        """Keep the head's rows (global, int64 [n]; negative: none) that the batch read, the latest
        last. A row enters once, and leaves when ``recent`` others have entered."""
        if not self.recent:
            return
        rows = rows.reshape(-1).long()
        rows = rows.narrow(0, max(0, rows.numel() - self.recent), min(rows.numel(), self.recent))
        inside = (rows >= self.begin) & (rows < self.begin + self.rows)
        rows = torch.where(inside, rows - self.begin, self.rows)
        order = torch.arange(rows.numel(), device=rows.device)
        first = torch.full_like(self.held, rows.numel(), dtype=torch.int64)
        first = first.scatter_reduce(0, rows, order, "amin")
        held = self.held.index_select(0, rows)
        fresh = held.logical_not() & (first.index_select(0, rows) == order)
        count = fresh.cumsum(0)
        slot = torch.where(fresh, (self.at + count - 1) % self.recent, self.recent)
        leaves = torch.where(fresh, self.ring.index_select(0, slot), self.rows)
        # Fills, since an assignment of False would copy it from the host.
        self.held.index_fill_(0, leaves, False)
        self.held.index_fill_(0, torch.where(fresh, rows, self.rows), True)
        self.held.narrow(0, self.rows, 1).fill_(True)  # it leaves with every empty place
        self.ring.index_copy_(0, slot, rows)
        self.at.add_(fresh.sum()).remainder_(self.recent)

    def best(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(logit float32 [n], row int64 [n], global) of the best scored row for each hidden row
        [n, d]; ``weight`` [slice's rows or more, d]."""
        # An empty place of the ring scores the slice's last row.
        ring = self.ring.narrow(0, 0, self.recent).clamp(max=self.rows - 1)
        shared = torch.cat([self.core, ring])
        value, at = F.linear(hidden, weight.index_select(0, shared)).float().max(1)
        row = shared.index_select(0, at)
        if self.spec.taken:
            own_value, own_row = self._routed(hidden, weight)
            row = torch.where(own_value > value, own_row, row)
            value = torch.maximum(own_value, value)
        return value, row + self.begin

    def _routed(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The same of each row's own clusters; rows local."""
        scores = F.linear(hidden, self.router).float() + self.router_bias
        taken = scores.topk(self.taken, 1).indices
        rows = self.clusters.index_select(0, taken.flatten()).view(hidden.shape[0], -1)
        part = max(1, GATHERED // (rows.shape[1] * hidden.shape[1]))
        values, found = [], []
        for h, r in zip(hidden.split(part), rows.split(part), strict=True):
            copied = weight.index_select(0, r.flatten()).view(*r.shape, -1)
            value, at = torch.bmm(copied, h.unsqueeze(2)).squeeze(2).float().max(1)
            values.append(value)
            found.append(r.gather(1, at.unsqueeze(1)).squeeze(1))
        return torch.cat(values), torch.cat(found)


def best_of_ranks(value: Tensor, row: Tensor) -> Tensor:
    """Rows int64 [n] of the largest values; ``value``, ``row`` [n, ranks]."""
    return row.gather(1, value.argmax(1, keepdim=True))[:, 0]
