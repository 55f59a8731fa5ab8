"""The weight formats by name: how rows of an LM head can be kept for drafting. Imports no torch.

Another package gives one by an entry point of the group "dynaspec.weight_formats": an object with
``name`` and ``store``, and with ``read`` where it is no form that the kernels know (weight.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynaspec_cli.registry import Entry, Registry

if TYPE_CHECKING:
    from dynaspec_cli.weights.weight import WeightFormat

OPTION = "--draft-head"
STORED = "stored"
"""What ``OPTION`` is by default: rows as the drafter's head has them, without a copy."""


def _own(constant: str, description: str) -> Entry:
    return Entry(description, f"dynaspec_cli.weights.formats:{constant}")


WEIGHT_FORMATS: Registry[WeightFormat] = Registry(
    "weight format",
    OPTION,
    "dynaspec.weight_formats",
    {
        "float32": _own("FLOAT32", "4 bytes a value"),
        "bfloat16": _own("BFLOAT16", "2 bytes a value, float32's range"),
        "float16": _own("FLOAT16", "2 bytes a value"),
        "int8": _own("INT8", "1 byte a value, a scale for each row"),
        "q8_0": _own("Q8_0", "8 bits a value, a scale for every 32"),
        "q5_1": _own("Q5_1", "5 bits a value, a scale and a minimum for every 32"),
        "q5_0": _own("Q5_0", "5 bits a value, a scale for every 32"),
        "q4_1": _own("Q4_1", "4 bits a value, a scale and a minimum for every 32"),
        "q4_0": _own("Q4_0", "4 bits a value, a scale for every 32"),
    },
)
