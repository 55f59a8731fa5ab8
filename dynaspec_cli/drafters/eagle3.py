"""EAGLE-3 and EAGLE-3.1 heads (arXiv 2503.01840), in EAGLE's folders and speculators'.

h_t    = fc [taps of the target, ascending]      of the target's states alone, once
         norm_before_fc: RMS over all taps first; fc_norm: RMS over each tap
n      = RMS(h);  e = RMS(emb(token_{t+1}))
x      = r + attn_0([e; n])                      r = h, or n with norm_before_residual
x     += mlp_0(RMS(x)), and further layers, which are ordinary ones
logits = the head's own rows of RMS(x)
h of the next draft step = x, or with norm_output RMS(x)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.kind import DrafterKind, HeadFacts
from dynaspec_cli.drafters.options import PUBLISHED
from dynaspec_cli.drafters.published import EAGLE3, HeadConfig
from dynaspec_cli.drafters.published_drafter import PublishedDrafter
from dynaspec_cli.drafters.published_weights import (
    HIDDEN_NORM,
    HeadWeights,
    canonical,
    inspect_head,
)
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Drafter, KeptRows, Target, TargetOutput
from dynaspec_cli.target.tokenizer import TextTokenizer


class Eagle3Drafter(PublishedDrafter):
    """The head reads the normed state."""

    def __init__(
        self, config: HeadConfig, weights: HeadWeights, target: Target, where: str
    ) -> None:
        super().__init__(config, weights, target, where)
        assert weights.norm is not None
        assert weights.hidden_norm is not None
        assert weights.token_norm is not None
        device = target.device
        self.norm = weights.norm.to(device).float()
        self.hidden_norm = weights.hidden_norm.to(device).float()
        self.token_norm = weights.token_norm.to(device).float()
        self.tap_norms = tuple(norm.to(device).float() for norm in weights.tap_norms)
        self.taps = config.taps.of(target.num_layers, target.name, where)
        wanted = weights.fc.shape[1] // config.target_hidden_size
        if len(self.taps) != wanted:
            raise DynaSpecError(
                f"{where}: fc reads {wanted} hidden states, but {len(self.taps)} layers are named "
                f"({', '.join(map(str, self.taps))}); give --drafter-option taps=…"
            )

    def describe(self) -> dict[str, Any]:
        c = self.config
        return super().describe() | {
            "drafter_taps": list(self.taps),
            "drafter_norm_before_residual": c.norm_before_residual,
            "drafter_norm_output": c.norm_output,
        }

    def states(self, output: TargetOutput | KeptRows, rows: Tensor) -> Tensor:
        assert output.taps is not None
        taps = output.taps[rows.to(output.taps.device)].float()
        if len(self.tap_norms) == 1:
            taps = self._rms(taps, self.tap_norms[0])
        elif self.tap_norms:
            parts = taps.chunk(len(self.tap_norms), 1)
            taps = torch.cat(
                [self._rms(part, norm) for part, norm in zip(parts, self.tap_norms, strict=True)], 1
            )
        return ops.linear(taps, self.fc, None, None)

    def forward(
        self,
        states: Tensor,
        embedded: Tensor,
        layer: Callable[[int, Tensor, Tensor | None], Tensor],
    ) -> tuple[Tensor, Tensor]:
        normed = self._rms(states, self.hidden_norm)
        tokens = self._rms(embedded, self.token_norm)
        residual = normed if self.config.norm_before_residual else states
        x = layer(0, residual, torch.cat([tokens, normed], 1))
        for i in range(1, len(self.layers)):
            x = layer(i, x, None)
        hidden = self._rms(x, self.norm)
        return hidden, hidden if self.config.norm_output else x

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return ops.rms_norm(x.contiguous(), weight, self.config.layer.eps)


def load_eagle3(
    files: DrafterFiles, target: Target, tokenizer: TextTokenizer | None = None
) -> Drafter:
    """The head in ``files``, checked against ``target``."""
    return Eagle3Drafter.load(files, target, EAGLE3)


def _recognise(files: DrafterFiles) -> bool:
    """The first layer norms the state apart from the token."""
    return any(canonical(name) == HIDDEN_NORM for name in files.shapes())


def _recognise_speculators(files: DrafterFiles) -> bool:
    return files.config.get("speculators_model_type") == "eagle3"


def _inspect(files: DrafterFiles) -> HeadFacts:
    return inspect_head(files, EAGLE3)


KIND = DrafterKind(_recognise, load_eagle3, _inspect, PUBLISHED)
SPECULATORS_KIND = DrafterKind(_recognise_speculators, load_eagle3, _inspect, PUBLISHED)
