"""One tree out of two: what a policy grew, and deterministic continuations beside it.

Nodes with the same path are one node. Under a node whose other children were drawn, the
continuations are points: verification tries them before the draws, which is exact because they were
chosen from the text alone, before anything was drawn (sampling/verify.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.verify import NodeDraft, SampledDrafts

NO_DRAWS = NodeDraft(torch.empty(0, dtype=torch.int64), torch.empty(0), ())


def graft(tree: DraftTree, tokens: Sequence[int], parents: Sequence[int]) -> DraftTree:
    """``tree`` with the nodes of a second tree under the same root: ``tokens`` and ``parents``,
    where -1 is the root and anything else an earlier index. Rows of ``tree`` keep their numbers;
    new ones come behind them."""
    all_tokens, all_parents = tree.tokens.tolist(), tree.parents.tolist()
    child = {(p, t): row for row, (p, t) in enumerate(zip(all_parents, all_tokens, strict=True))}
    rows: list[int] = []
    points: dict[int, list[int]] = {}
    for token, parent in zip(tokens, parents, strict=True):
        above = 0 if parent < 0 else rows[parent]
        row = child.get((above, token))
        if row is None:
            row = len(all_tokens)
            child[above, token] = row
            all_tokens.append(token)
            all_parents.append(above)
        rows.append(row)
        points.setdefault(above, []).append(row)
    drafts = tree.q
    if isinstance(drafts, SampledDrafts):
        nodes = dict(drafts.nodes)
        for above, found in points.items():
            nodes[above] = replace(nodes.get(above, NO_DRAWS), points=tuple(found))
        drafts = replace(drafts, nodes=nodes)
    return DraftTree(torch.tensor(all_tokens), torch.tensor(all_parents), drafts, tree.values)
