"""Which rows of a verified tree the LM head is applied to.

A walk visits one path, and the head of a large vocabulary costs as much as the layers. Up to some
number of rows (``TargetOutput.cheap_rows``) it costs what one row does, since reading its weights
is what takes the time; beyond, every row costs. So a large tree is read in parts: the rows where
the walk will probably go, and others only if it gets there. A row's logits do not depend on the
rows beside it, so the walk is the same.

Where the walk goes is guessed from the target's own logits of the drafted tokens, one dot product
a node: the gap between a child's logit and its best sibling's, summed along the path, orders the
rows. For a greedy walk the path of the best children, whose gaps are 0, holds all it can accept.
"""

from __future__ import annotations

import heapq

import torch

from dynaspec_cli.protocols import DraftTree, TargetOutput


def read_at_once(tree: DraftTree, output: TargetOutput) -> bool:
    """Are all rows of a tree cheap to read?"""
    return output.cheap_rows is None or tree.num_nodes + 1 <= output.cheap_rows


class RowReader:
    """``rows(row)``: ``row`` and the rows below it that are best read with it."""

    def __init__(self, tree: DraftTree, output: TargetOutput, children: list[list[int]]) -> None:
        self._tree, self._output, self._children = tree, output, children
        self._gaps: list[float] | None = None
        total = tree.num_nodes + 1
        self._limit = total if output.cheap_rows is None else output.cheap_rows

    def rows(self, row: int) -> list[int]:
        """Ascending, at most as many as are cheap."""
        waiting: list[tuple[float, int]] = [(0.0, row)]
        chosen: list[int] = []
        gaps = self._gap_of_rows()
        while waiting and len(chosen) < self._limit:
            gap, at = heapq.heappop(waiting)
            chosen.append(at)
            for child in self._children[at]:
                heapq.heappush(waiting, (gap + gaps[child], child))
        return sorted(chosen)

    def _gap_of_rows(self) -> list[float]:
        """Per row: its best sibling's logit minus its own (the root: 0)."""
        if self._gaps is None:
            tree = self._tree
            if read_at_once(tree, self._output):
                self._gaps = [0.0] * (tree.num_nodes + 1)
            else:
                logits = self._output.logits_at(tree.parents[1:], tree.tokens[1:])
                best = torch.full((tree.num_nodes + 1,), -torch.inf, device=logits.device)
                best.scatter_reduce_(0, tree.parents[1:], logits, "amax")
                self._gaps = [0.0, *(best[tree.parents[1:]] - logits).tolist()]
        return self._gaps
