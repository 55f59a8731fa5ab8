"""The part of a ``transformers`` model below its LM head, as the target and the trainer use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from dynaspec_cli.errors import DynaSpecError

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
LAYER_LISTS = ("layers", "h", "blocks")


@dataclass(frozen=True)
class Backbone:
    """``stack``: the decoder layers with the final norm behind them; ``norm``: that norm;
    ``embedding``: the input embedding; ``cache_argument``: what ``stack`` calls its KV cache;
    ``name``: the model's, for messages."""

    stack: Any
    norm: nn.Module
    embedding: nn.Module
    cache_argument: str
    name: str

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
        norm = _final_norm(stack, name)
        return cls(stack, norm, model.get_input_embeddings(), cache_argument, name)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers. Raises ``DynaSpecError`` where no list of them is found."""
        for attribute in LAYER_LISTS:
            found = getattr(self.stack, attribute, None)
            if isinstance(found, nn.ModuleList):
                return found
        raise DynaSpecError(
            f"{self.name}: the drafter reads hidden states between layers, and no list of layers "
            f"was found in {type(self.stack).__name__} (expected one of {', '.join(LAYER_LISTS)})"
        )

    def run(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: Any,
        cache: Any,
        taps: tuple[int, ...] = (),
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(features [B, n, d], normed [B, n, d], a stream [B, n, d] for each of ``taps``) of new
        tokens int64 [B, n] at ``positions`` [B, n]. Features are the input of the final norm; tap i
        is the residual stream that enters layer i, the number of layers standing for the features.
        Keys and values go to ``cache``."""
        streams: dict[int | None, Tensor] = {}
        with ExitStack() as hooks:
            hooks.callback(_catch(self.norm, partial(streams.__setitem__, None)))
            for tap in set(taps):
                if tap < len(self.layers):
                    hooks.callback(_catch(self.layers[tap], partial(streams.__setitem__, tap)))
            normed = self.stack(
                input_ids=token_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self.cache_argument: cache},
            ).last_hidden_state
        features = streams[None]
        return features, normed, [streams.get(tap, features) for tap in taps]


def _catch(module: nn.Module, take: Callable[[Tensor], None]) -> Callable[[], None]:
    """Hands ``module``'s input to ``take``; what ends it."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(args[0] if args else kwargs["hidden_states"])

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _final_norm(stack: Any, name: str) -> nn.Module:
    for attribute in FINAL_NORMS:
        module = getattr(stack, attribute, None)
        if isinstance(module, nn.Module):
            return module
    raise DynaSpecError(
        f"{name}: no final norm found in {type(stack).__name__}; expected one of "
        f"{', '.join(FINAL_NORMS)}"
    )
