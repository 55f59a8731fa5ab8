"""The part of a ``transformers`` model below its LM head, as the target and the trainer use it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dynaspec_cli.errors import DynaSpecError

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


@dataclass(frozen=True)
class Backbone:
    """``stack``: the decoder layers with the final norm behind them; ``norm``: that norm;
    ``embedding``: the input embedding; ``cache_argument``: what ``stack`` calls its KV cache."""

    stack: Any
    norm: nn.Module
    embedding: nn.Module
    cache_argument: str

    @classmethod
    def of(cls, model: Any, name: str) -> Backbone:
        """The backbone of a loaded model. Raises ``DynaSpecError`` where it has none."""
        stack = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        if stack is model:
            raise DynaSpecError(
                f"{name} has no decoder stack below an LM head, so it is no causal language model; "
                "choose another --model"
            )
        # transformers 5.24 renamed it, and drops the old name in 5.40.
        known = inspect.signature(stack.forward).parameters
        cache_argument = "cache" if "cache" in known else "past_key_values"
        return cls(stack, _final_norm(stack, name), model.get_input_embeddings(), cache_argument)

    def run(
        self, token_ids: Tensor, positions: Tensor, mask: Any, cache: Any
    ) -> tuple[Tensor, Tensor]:
        """(features [B, n, d], normed [B, n, d]) of new tokens int64 [B, n] at ``positions``
        [B, n]; features are the input of the final norm. Their keys and values go to ``cache``."""
        captured: list[Tensor] = []
        hook = self.norm.register_forward_pre_hook(lambda module, args: captured.append(args[0]))
        try:
            normed = self.stack(
                input_ids=token_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self.cache_argument: cache},
            ).last_hidden_state
        finally:
            hook.remove()
        return captured[-1], normed


def _final_norm(stack: Any, name: str) -> nn.Module:
    for attribute in FINAL_NORMS:
        module = getattr(stack, attribute, None)
        if isinstance(module, nn.Module):
            return module
    raise DynaSpecError(
        f"{name}: no final norm found in {type(stack).__name__}; expected one of "
        f"{', '.join(FINAL_NORMS)}"
    )
