"""``--drafter-option KEY=VALUE``: what the user says where a drafter's files leave it open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from dynaspec_cli.errors import UsageError

OPTION = "--drafter-option"

PUBLISHED = {
    "taps": "layers whose inputs the head reads, ascending: taps=2,16,29",
    "norm_before_residual": "true or false: is the residual stream the normed state?",
    "norm_output": "true or false: is the normed state fed back (EAGLE-3.1)?",
    "tie_word_embeddings": "true or false: is the head the drafter's embeddings?",
    "rope_theta": "base of the rotary embedding",
    "sliding_window": "tokens that attention reaches back; 0: all",
    "model_type": "family of the drafter's layers",
}
"""Options of EAGLE heads and speculators folders, with their meaning."""


def parse_options(given: Iterable[str]) -> dict[str, str]:
    """KEY=VALUE texts as a mapping. Raises UsageError."""
    options: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key or not value.strip():
            raise UsageError(f"{OPTION}: expected KEY=VALUE, got {text!r}")
        if key in options:
            raise UsageError(f"{OPTION}: {key} is given twice")
        options[key] = value.strip()
    return options


def check_known(options: Mapping[str, str], known: Mapping[str, str], kind: str) -> None:
    """Refuse an option that a kind of drafter does not have."""
    for key in options:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{OPTION} {key}: a drafter of kind {kind} has no such option; {has}")


def as_bool(options: Mapping[str, str], key: str) -> bool | None:
    """The value of a true-or-false option, None where it is not given."""
    if key not in options:
        return None
    value = {"true": True, "1": True, "false": False, "0": False}.get(options[key].lower())
    if value is None:
        raise UsageError(f"{OPTION} {key}: expected true or false, got {options[key]!r}")
    return value


def as_number(options: Mapping[str, str], key: str, least: float) -> float | None:
    """The value of a number option of at least ``least``, None where it is not given."""
    if key not in options:
        return None
    try:
        value = float(options[key])
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        raise UsageError(
            f"{OPTION} {key}: expected a number of at least {least:g}, got {options[key]!r}"
        )
    return value


def as_layers(options: Mapping[str, str], key: str) -> tuple[int, ...] | None:
    """The value of a list of layer numbers, ascending, None where it is not given."""
    if key not in options:
        return None
    try:
        layers = tuple(int(part) for part in options[key].split(","))
    except ValueError:
        layers = ()
    rising = all(b > a for a, b in pairwise(layers))
    if not layers or min(layers) < 0 or not rising:
        raise UsageError(
            f"{OPTION} {key}: expected ascending layer numbers such as 2,16,29, got "
            f"{options[key]!r}"
        )
    return layers
