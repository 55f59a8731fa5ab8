"""Ops of the draft and verify steps: compiled where the extension was built, else the references.

``backend()`` names what runs them, ``backend_reason()`` says why.
"""

from __future__ import annotations

from dynaspec_cli.ops import fakes
from dynaspec_cli.ops.decoder import decoder_layer
from dynaspec_cli.ops.draw import (
    draw_index,
    draw_rows,
    filtered_softmax,
    sibling_chances,
)
from dynaspec_cli.ops.extension import EXTENSION, backend, backend_reason, compiled
from dynaspec_cli.ops.failures import NotFiniteLogits
from dynaspec_cli.ops.head import (
    draft_head,
    embed_rows,
    linear,
    pack_blocks,
    router_clusters,
    shortlist_log_probs,
    shortlist_topk,
    shortlist_union,
)
from dynaspec_cli.ops.layer import LayerWeights, dense_layer
from dynaspec_cli.ops.norm import drafter_input, rms_norm
from dynaspec_cli.ops.tree import greedy_walk, kv_commit, tree_mask

if EXTENSION.module is not None:
    fakes.register()

__all__ = [
    "LayerWeights",
    "NotFiniteLogits",
    "backend",
    "backend_reason",
    "compiled",
    "decoder_layer",
    "dense_layer",
    "draft_head",
    "drafter_input",
    "draw_index",
    "draw_rows",
    "embed_rows",
    "filtered_softmax",
    "greedy_walk",
    "kv_commit",
    "linear",
    "pack_blocks",
    "rms_norm",
    "router_clusters",
    "shortlist_log_probs",
    "shortlist_topk",
    "shortlist_union",
    "sibling_chances",
    "tree_mask",
]
