"""Which hidden states of the target an EAGLE-3 head reads.

Numbers are *layer inputs*: k is the state that enters decoder layer k, L what leaves the last
layer, before the final norm (``Target.begin``). Published lists have two meanings under one key:
speculators and vLLM list layer inputs, SpecForge and SGLang the layers whose *outputs* are read,
one less. SpecForge's own default begins with 1, EAGLE's with 2, so the first number tells them
apart; any other first number is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynaspec_cli.drafters import options as opt
from dynaspec_cli.errors import DynaSpecError

KEY = "eagle_aux_hidden_state_layer_ids"
ALIASES = (KEY, "layer_ids")
DEFAULT_TAPS = 3


@dataclass(frozen=True)
class Taps:
    """``layers``: layer inputs, ascending; None: EAGLE's rule of the target's depth."""

    layers: tuple[int, ...] | None
    note: str = ""

    def of(self, num_layers: int, target: str, where: str) -> tuple[int, ...]:
        """For a target of ``num_layers`` decoder layers. Raises DynaSpecError where they lie
        outside, or the rule names fewer than three."""
        if self.layers is not None:
            if self.layers[-1] > num_layers:
                raise DynaSpecError(
                    f"{where}: reads the hidden state that enters layer {self.layers[-1]}, but "
                    f"{target} has {num_layers} layers; it was made for another target"
                )
            return self.layers
        taps = (2, num_layers // 2, num_layers - 3)
        if not taps[0] < taps[1] < taps[2]:
            raise DynaSpecError(
                f"{where}: names no layers, and EAGLE's rule (2, L//2, L-3) names no three "
                f"different ones of {target}'s {num_layers}; give {opt.OPTION} taps=…"
            )
        return taps


def read_taps(
    outer: Mapping[str, Any],
    eagle: Mapping[str, Any],
    options: Mapping[str, str],
    used: set[str],
    speculators: bool,
    where: str,
) -> Taps:
    """From a config's outer object and its ``eagle_config``; ``used`` gets the keys read."""
    used |= set(ALIASES)
    given = opt.as_layers(options, "taps")
    if given is not None:
        return Taps(given)
    found = [place[key] for place in (outer, eagle) for key in ALIASES if place.get(key)]
    if not found:
        return Taps(None)
    if any(other != found[0] for other in found):
        raise DynaSpecError(f"{where}: config.json: two lists of layers, {found[0]} and {found[1]}")
    ids = found[0]
    if not isinstance(ids, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise DynaSpecError(f"{where}: config.json: {KEY}: expected layer numbers, got {ids!r}")
    layers = tuple(sorted(set(ids)))
    if len(layers) != len(ids) or layers[0] < 0:
        raise DynaSpecError(
            f"{where}: config.json: {KEY}: expected distinct layers from 0 on, got {ids}"
        )
    if speculators:
        return Taps(layers)
    if layers[0] == 1:
        outputs = tuple(layer + 1 for layer in layers)
        note = f"{KEY} {ids}: taken as SpecForge and SGLang do, the outputs of these layers; "
        return Taps(outputs, note + f"vLLM takes their inputs ({opt.OPTION} taps={_list(layers)})")
    if layers[0] == 2:
        outputs = tuple(layer + 1 for layer in layers)
        note = f"{KEY} {ids}: taken as the inputs of these layers; SpecForge and SGLang may mean "
        return Taps(layers, note + f"their outputs ({opt.OPTION} taps={_list(outputs)})")
    raise DynaSpecError(
        f"{where}: config.json: {KEY} {ids} means the inputs of these layers to vLLM and their "
        f"outputs to SpecForge and SGLang; give {opt.OPTION} taps={_list(layers)} or "
        f"taps={_list(tuple(i + 1 for i in layers))}"
    )


def _list(layers: tuple[int, ...]) -> str:
    return ",".join(str(layer) for layer in layers)
