"""EAGLE-1, EAGLE-2 and HASS heads (arXiv 2401.15077, 2406.16858, 2408.15766).

    f_t    = the target's last hidden state after its final norm, or the x of the draft step before
    x      = fc [emb(token_{t+1}); f_t] (+ bias)
    x     += attn_0(x)                               no norm before the first attention
    x     += mlp_0(RMS(x)), and further layers, which are ordinary ones
    logits = the target's LM head of x               no norm: x is the predicted f_{t+1}

EAGLE-2 is EAGLE-1's weights with another tree, HASS EAGLE-1's form trained otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.kind import DrafterKind, HeadFacts
from dynaspec_cli.drafters.options import PUBLISHED
from dynaspec_cli.drafters.published import EAGLE1
from dynaspec_cli.drafters.published_drafter import PublishedDrafter
from dynaspec_cli.drafters.published_weights import (
    HIDDEN_NORM,
    canonical,
    inspect_head,
)
from dynaspec_cli.protocols import Drafter, KeptRows, Target, TargetOutput
from dynaspec_cli.target.tokenizer import TextTokenizer


class Eagle1Drafter(PublishedDrafter):
    """The head reads x itself."""

    def states(self, output: TargetOutput | KeptRows, rows: Tensor) -> Tensor:
        return self.target.norm(output.features[rows.to(output.features.device)]).float()

    def forward(
        self,
        states: Tensor,
        embedded: Tensor,
        layer: Callable[[int, Tensor, Tensor | None], Tensor],
    ) -> tuple[Tensor, Tensor]:
        x = ops.linear(torch.cat([embedded, states], 1), self.fc, self.fc_bias, None)
        x = layer(0, x, x)
        for i in range(1, len(self.layers)):
            x = layer(i, x, None)
        return x, x


def load_eagle1(
    files: DrafterFiles, target: Target, tokenizer: TextTokenizer | None = None
) -> Drafter:
    """The head in ``files``, checked against ``target``."""
    return Eagle1Drafter.load(files, target, EAGLE1)


def _recognise(files: DrafterFiles) -> bool:
    """fc joins two rows of the drafter's width, and no layer norms a state of taps."""
    shapes = {canonical(name): shape for name, shape in files.shapes().items()}
    fc = shapes.get("fc.weight", ())
    first = any(name.startswith("layers.0.") for name in shapes)
    return len(fc) == 2 and fc[1] == 2 * fc[0] and first and HIDDEN_NORM not in shapes


def _inspect(files: DrafterFiles) -> HeadFacts:
    return inspect_head(files, EAGLE1)


KIND = DrafterKind(_recognise, load_eagle1, _inspect, PUBLISHED)
