"""Acceptance by position among siblings: measured, kept beside a drafter, read by sequoia.

``acceptance.json`` in a drafter's folder: for each temperature of the target at which it was
measured, a_b, the probability that the b-th child tried is the one accepted (arXiv 2402.12374,
section 3.1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError, UsageError

FILE = "acceptance.json"
SCHEMA = 1

EXAMPLE = (0.6342, 0.1079, 0.0570, 0.0225, 0.0195, 0.015, 0.012, 0.010, 0.008, 0.007)
"""Where nothing was measured. The first six are the example that Sequoia's repository ships (a 68M
drafter for Llama-2-7B); the rest continue them."""


@dataclass(frozen=True)
class Acceptance:
    """What verification did at nodes with drafted children: ``tried[b]`` times child b (from 0) was
    tried, ``accepted[b]`` times it was accepted. ``facts``: of the measurement."""

    tried: tuple[int, ...]
    accepted: tuple[int, ...]
    facts: dict[str, Any]

    @property
    def vector(self) -> tuple[float, ...]:
        """a_b = h_b (1 - h_1) ... (1 - h_(b-1)), h_b the rate at which a child that is tried is
        accepted (the Kaplan-Meier estimate: nodes with fewer children say nothing of later
        ones)."""
        left, vector = 1.0, []
        for tried, accepted in zip(self.tried, self.accepted, strict=True):
            if not tried:
                break
            rate = accepted / tried
            vector.append(left * rate)
            left *= 1.0 - rate
        return tuple(vector)


Table = dict[float, Acceptance]
"""By the target's temperature."""


def nearest(table: Table, temperature: float) -> float:
    """The measured temperature next to one."""
    return min(table, key=lambda t: (abs(t - temperature), t))


def read_table(folder: Path | None) -> Table:
    """The table of a drafter's folder; empty where it has none. DynaSpecError where it is
    malformed."""
    if folder is None or not (folder / FILE).is_file():
        return {}
    path = folder / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}")
        return {float(t): _read(entry) for t, entry in data["temperatures"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DynaSpecError(
            f"{path}: expected counts by temperature as bench --measure-acceptance writes them, "
            f"got {type(error).__name__}: {error}; measure again or delete it"
        ) from None


def _read(entry: Any) -> Acceptance:
    tried, accepted = tuple(entry["tried"]), tuple(entry["accepted"])
    pairs = list(zip(tried, accepted, strict=True))
    if not tried or not tried[0] or not all(0 <= a <= n for n, a in pairs):
        raise ValueError(f"{accepted} accepted of {tried}")
    return Acceptance(tried, accepted, dict(entry.get("facts", {})))


def write_table(folder: Path, measured: Table) -> Path:
    """Write it beside the drafter, keeping temperatures that were measured before; atomically."""
    table = {**read_table(folder), **measured}
    entries = {
        f"{t:g}": {
            "acceptance": [round(a, 4) for a in table[t].vector],
            "tried": list(table[t].tried),
            "accepted": list(table[t].accepted),
            "facts": table[t].facts,
        }
        for t in sorted(table)
    }
    path = folder / FILE
    partial = path.with_suffix(".partial")
    text = json.dumps({"schema": SCHEMA, "temperatures": entries}, indent=1)
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DynaSpecError(
            f"{path}: cannot be written ({error.strerror}); copy the drafter to a folder of yours "
            "and give it as --drafter"
        ) from None
    return path


def read_vector(text: str, name: str) -> tuple[float, ...]:
    """Numbers between commas, or a JSON file that holds a list of them."""
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return tuple(float(a) for a in json.loads(path.read_text(encoding="utf-8")))
        return tuple(float(part) for part in text.split(","))
    except (OSError, ValueError, TypeError):
        raise UsageError(
            f"{name}: expected auto, numbers between commas or a JSON file with a list of them, "
            f"got {text}"
        ) from None
