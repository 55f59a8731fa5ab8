"""The engine's own classes on fake CUDA tensors: target, drafter, shortlist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.eagle import EagleDrafter, expected_shapes
from dynaspec_cli.protocols import DraftTree, ShortlistQuery
from dynaspec_cli.shortlist.dynaspec import DynaSpecShortlist
from dynaspec_cli.shortlist.head import DraftHead
from dynaspec_cli.shortlist.router import Router
from dynaspec_cli.target.transformers_target import TransformersTarget

VOCAB, DIM, CLUSTERS = 512, 64, 16


class TracedTarget(TransformersTarget):
    """Without what loading does with real weights: the comparison of logits, the hash."""

    def _self_check(self) -> None:
        return None

    def head_hash(self) -> str:
        return "traced"


def _target() -> TracedTarget:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # a fake model cannot be converted in place
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return TracedTarget(model, "traced model")


def _drafter(target: Any) -> EagleDrafter:
    config = DrafterConfig(
        target_name="traced model",
        head_hash="traced",
        vocab_size=VOCAB,
        hidden_size=DIM,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        activation="silu",
        eps=1e-6,
        attention_scale=0.25,
        rope_theta=10000.0,
        window=0,
        feature_scale=1.0,
        has_qk_norm=False,
        has_qkv_bias=False,
        has_post_norms=False,
    )
    tensors = {
        name: torch.randn(shape, device="cuda") for name, shape in expected_shapes(config).items()
    }
    return EagleDrafter(config, tensors, target)


def _shortlist(target: Any) -> DynaSpecShortlist:
    cuda = torch.device("cuda")
    ids = torch.arange(VOCAB, device=cuda, dtype=torch.int32)
    head = DraftHead(target.head_weight(), ids, ids.long(), VOCAB)
    weights = {"w1": (32, 2 * DIM), "b1": (32,), "w2": (CLUSTERS, 32), "b2": (CLUSTERS,)}
    router = Router("mlp", {name: torch.randn(s, device=cuda) for name, s in weights.items()}, cuda)
    offsets = torch.linspace(32, VOCAB, CLUSTERS + 1, device=cuda).int()
    return DynaSpecShortlist(head, target, router, offsets, (256, 192), 32, 0)


def engine_steps() -> Iterator[str]:
    """Prefill, two draft steps, verification, commit; yields each step that was traced."""
    target = _target()
    drafter, shortlist = _drafter(target), _shortlist(target)
    state = target.begin(128)
    prompt = torch.arange(12)  # of the host, as a tokenizer gives it
    output = target.prefill(state, prompt)
    yield "prefill"
    draft = drafter.begin(torch.tensor([1]), 128)
    feature = drafter.read(draft, output.features[:-1], prompt[1:])
    yield "drafter: committed rows"
    chosen = shortlist.begin(prompt, output)
    tokens, parents = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.full((1,), -1)
    for depth in (1, 2):
        selection = shortlist.select(chosen, ShortlistQuery(depth, feature, tokens))
        scored = shortlist.score(chosen, selection, target.norm(feature), 4)
        yield f"shortlist at depth {depth}"
        # What a policy on the host makes of the candidates: two of them, below row 0.
        tokens, source = scored.ids[0, :2], torch.zeros(2, dtype=torch.int64, device="cuda")
        parents = torch.full((2,), depth - 2, device="cuda")
        feature = drafter.expand(draft, feature[source], tokens, parents)
        yield f"drafter step at depth {depth}"
    tree = DraftTree(torch.zeros(5, dtype=torch.int64), torch.tensor([-1, 0, 0, 1, 1]))
    output = target.verify(state, tree)
    output.argmax()
    yield "verification"
    state.cache._own[0].keep(torch.tensor([0, 2], device="cuda"))
    state.cache.keep(torch.tensor([0, 2]), target.device)
    yield "commit"
