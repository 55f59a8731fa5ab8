"""The rotary embedding of a published head: base 10000 unless its own config says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynaspec_cli.drafters import options as opt
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.rope import RotaryTable, frequencies

DEFAULT_THETA = 10000.0
"""Not the target's: EAGLE's own configs for Llama-3 name none, and their layers take this one."""
DEFAULT_POSITIONS = 2048
NEEDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Rotary types whose frequencies do not depend on the length of the text, with what they need.
"longrope" is not among them: its lists are the target's own."""
TEXT_ONLY = ("mrope_section", "mrope_interleaved")
"""Where positions of text, height and width are told apart; in text they are one."""


@dataclass(frozen=True)
class Rope:
    """``parameters`` with transformers' keys."""

    parameters: dict[str, Any]

    @property
    def theta(self) -> float:
        return float(self.parameters["rope_theta"])

    def table(self, head_dim: int) -> RotaryTable:
        return RotaryTable(*frequencies(self.parameters, head_dim))


def read_rope(
    layer: Mapping[str, Any], options: Mapping[str, str], used: set[str], where: str
) -> Rope:
    """From the layers' config; ``used`` gets the keys that were read. Both spellings are read:
    ``rope_parameters`` (transformers 5; by layer type, or not) and ``rope_theta`` with
    ``rope_scaling`` (before)."""
    used |= {"rope_parameters", "rope_scaling", "rope_theta"}
    parameters = _parameters(layer.get("rope_parameters"), layer, where)
    scaling = layer.get("rope_scaling")
    if scaling:
        if not isinstance(scaling, dict):
            raise _fault(where, f"rope_scaling: expected an object, got {scaling!r}")
        parameters = _agreed(parameters, scaling, where)
    if layer.get("rope_theta") is not None:
        parameters = _agreed(parameters, {"rope_theta": layer["rope_theta"]}, where)
    given = opt.as_number(options, "rope_theta", 1.0)
    parameters["rope_theta"] = given or parameters.get("rope_theta") or DEFAULT_THETA
    parameters["rope_type"] = _kind(parameters, where)
    _check_numbers(parameters, layer, where)
    return Rope(parameters)


def _parameters(values: Any, layer: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One set for all layers."""
    if not values:
        return {}
    if not isinstance(values, dict):
        raise _fault(where, f"rope_parameters: expected an object, got {values!r}")
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    if not nested:
        return dict(values)
    types = sorted(set(layer.get("layer_types") or nested))
    sets = [nested.get(kind) for kind in types]
    if any(found is None or found != sets[0] for found in sets):
        raise _fault(where, f"rope_parameters differ by layer type ({', '.join(types)})")
    return dict(sets[0] or {})


def _agreed(parameters: dict[str, Any], more: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Both sets in one; what stands in both must be the same."""
    for key, value in more.items():
        if parameters.get(key, value) != value:
            raise _fault(
                where, f"{key} is {value!r} in one place and {parameters[key]!r} in rope_parameters"
            )
    return {**parameters, **more}


def _kind(parameters: dict[str, Any], where: str) -> str:
    kind = parameters.pop("type", None) or parameters.get("rope_type") or "default"
    if any(parameters.pop(key, None) is not None for key in TEXT_ONLY) and kind == "mrope":
        kind = "default"
    if kind not in NEEDS:
        raise _fault(
            where,
            f"rotary embeddings of type {kind!r} have no form here; known are {', '.join(NEEDS)}",
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise _fault(where, "a partial rotary embedding has no form here")
    return str(kind)


def _check_numbers(parameters: dict[str, Any], layer: Mapping[str, Any], where: str) -> None:
    """Every number that a scaled type needs."""
    if "original_max_position_embeddings" in NEEDS[parameters["rope_type"]]:
        positions = layer.get("max_position_embeddings") or DEFAULT_POSITIONS
        parameters.setdefault("original_max_position_embeddings", positions)
    for key in ("rope_theta", *NEEDS[parameters["rope_type"]]):
        value = parameters.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise _fault(where, f"rotary parameter {key}: expected a number above 0, got {value!r}")


def _fault(where: str, text: str) -> DynaSpecError:
    return DynaSpecError(f"{where}: config.json: {text}")
