"""The target as a teacher: features of whole batches, and text that it writes itself.

Text written by the target is what the drafter will meet, and costs about as much as reading text:
the features of a generated token fall out of generating it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = "dynaspec_teacher"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [B, H, Q, D], key and value [B, G, T, D]. One new token a sequence (Q = 1) turns the
    query heads of a group into query rows, so that keys and values are read once a group and not
    copied once a head."""
    batch, heads, rows, width = query.shape
    groups = key.shape[1]
    window = int(getattr(module, "sliding_window", None) or 0)
    if rows == 1:
        if window:
            key, value = key[:, :, -window:], value[:, :, -window:]
        grouped = query.reshape(batch, groups, heads // groups, width)
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(batch, 1, heads, width), None
    if window and rows > window:
        at = torch.arange(rows, device=query.device)
        distance = at[:, None] - at
        mask = (distance >= 0) & (distance < window)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=groups != heads,
    )
    return out.transpose(1, 2), None


class BatchCache:
    """Keys and values of a batch of equally long sequences; stands in for transformers' own."""

    def __init__(self, batch: int, length: int) -> None:
        self.batch, self.capacity, self.length = batch, length, 0
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if layer not in self._keys:
            shape = (self.batch, key.shape[1], self.capacity, key.shape[3])
            self._keys[layer] = (key.new_empty(shape), value.new_empty(shape))
        k, v = self._keys[layer]
        end = self.length + key.shape[2]
        k[:, :, self.length : end] = key
        v[:, :, self.length : end] = value
        return k[:, :, :end], v[:, :, :end]

    def get_seq_length(self, *_: Any) -> int:
        return self.length


class Teacher:
    """``target``: a ``TransformersTarget``. A pass begins with an empty cache or adds one token."""

    def __init__(self, target: Any) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
        self.target = target
        self.model = target.model
        self.model.requires_grad_(False)
        self.model.config._attn_implementation = ATTENTION
        self.backbone = target.backbone
        self.backbone.stack.config._attn_implementation = ATTENTION
        config = self.model.config.get_text_config()
        kinds: list[str] = getattr(config, "layer_types", None) or []
        self._mask: Any = dict.fromkeys(kinds) if "sliding_attention" in kinds else None
        self.max_length = int(config.max_position_embeddings)
        self.head = target.head_weight().data

    def _pass(self, tokens: Tensor, cache: BatchCache) -> tuple[Tensor, Tensor]:
        """(features [B, n, d], normed [B, n, d]) of new tokens [B, n]."""
        positions = torch.arange(
            cache.length, cache.length + tokens.shape[1], device=tokens.device
        )[None]
        mask = self._mask if self._mask is not None else {"full_attention": None}
        features, normed, _ = self.backbone.run(tokens, positions, mask, cache)
        cache.length += tokens.shape[1]
        return features, normed

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        """Features [B, T, d] of int64 tokens [B, T]."""
        return self._pass(tokens, BatchCache(*tokens.shape))[0]

    @torch.inference_mode()
    def write(
        self,
        prompts: Tensor,
        new: int,
        temperature: Tensor,
        generator: torch.Generator,
        ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Continue prompts [B, P] by ``new`` tokens each: (tokens [B, P + new], features [B, P +
        new, d]).

        temperature float32 [B], 0 is greedy. Tokens are chosen among ``ids`` int64 (sorted; a part
        of the vocabulary is enough to train on, and the head is most of a step's cost).
        """
        batch, prompt = prompts.shape
        cache = BatchCache(batch, prompt + new)
        head = self.head[ids]
        tokens = torch.empty(batch, prompt + new, dtype=torch.int64, device=prompts.device)
        tokens[:, :prompt] = prompts
        features, normed = self._pass(prompts, cache)
        kept = features.new_empty(batch, prompt + new, features.shape[2])
        kept[:, :prompt] = features
        sampled = temperature > 0
        for at in range(prompt, prompt + new):
            logits = F.linear(normed[:, -1], head).float()
            choice = logits.argmax(-1)
            if bool(sampled.any()):
                p = torch.softmax(logits[sampled] / temperature[sampled, None], -1)
                choice[sampled] = torch.multinomial(p, 1, generator=generator)[:, 0]
            tokens[:, at] = ids[choice]
            features, normed = self._pass(tokens[:, at : at + 1], cache)
            kept[:, at] = features[:, 0]
        return tokens, kept
