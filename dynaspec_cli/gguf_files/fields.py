"""The keys of a model's architecture: read by type, and every one accounted for."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.model import GgufModel

T = TypeVar("T")
REQUIRED: Any = object()

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "vocab_size": (),
    "rope.scaling.finetuned": (),
    "tensor_data_layout": (),
    "pooling_type": (),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "leading_dense_block_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "use_parallel_residual": (False,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.output_scale": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "nextn_predict_layers": (0,),
}
"""Keys that change nothing, whatever they say (empty) or while they say one of these values."""


class Fields:
    """Keys ``ARCHITECTURE.name`` by ``name``. What is read is remembered, so that a key that
    changes numbers and that nobody asked for is refused by its name."""

    def __init__(self, model: GgufModel) -> None:
        self.place = model.place
        self.prefix = model.architecture
        head = f"{self.prefix}."
        self._values = {k[len(head) :]: v for k, v in model.keys.items() if k.startswith(head)}
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def refuse(self, name: str, why: str) -> DynaSpecError:
        return DynaSpecError(f"{self.place}: {self.prefix}.{name} {why}")

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        if name in self._values:
            value = self._values[name]
            return value.tolist() if isinstance(value, np.ndarray) else value
        if default is REQUIRED:
            raise self.refuse(name, "is missing; the file is incomplete: convert the model again")
        return default

    def integer(self, name: str, default: Any = REQUIRED, least: int = 1) -> Any:
        """An integer of at least ``least``; a list of equal ones (a number a layer) counts as
        one."""
        value = self._get(name, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.refuse(name, f"differs by layer ({_short(value)}): no layers for it")
            value = value[0]
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refuse(name, f"is {_short(value)}, expected an integer of {least} or more")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        """A finite float of 0 or more."""
        value = self._get(name, default)
        if value is default:
            return value
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not 0 <= value < float("inf"):
            raise self.refuse(name, f"is {_short(value)}, expected a number of 0 or more")
        return float(value)

    def text(self, name: str, default: Any = REQUIRED) -> Any:
        value = self._get(name, default)
        if value is not default and not isinstance(value, str):
            raise self.refuse(name, f"is {_short(value)}, expected a text")
        return value

    def pattern(self, name: str, default: int, layers: int) -> list[bool]:
        """Which layers are windowed: a period n (all but each n-th), or a flag a layer."""
        value = self._get(name, default)
        if isinstance(value, list):
            if len(value) < layers or not all(isinstance(x, bool | int) for x in value):
                raise self.refuse(name, f"has {len(value)} entries, expected {layers} flags")
            return [bool(x) for x in value[:layers]]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(name, f"is {_short(value)}, expected a period or a flag a layer")
        return [i % value < value - 1 for i in range(layers)]

    def check_all_used(self) -> None:
        """Raises ``DynaSpecError`` with the name of a key that changes numbers and was not read."""
        for name, value in self._values.items():
            if name in self._read:
                continue
            if name in NEUTRAL:
                allowed = NEUTRAL[name]
                plain = value.tolist() if isinstance(value, np.ndarray) else value
                entries = plain if isinstance(plain, list) else [plain]
                if not allowed or all(entry in allowed for entry in entries):
                    continue
            raise self.refuse(
                name,
                f"is {_short(value)}, which changes the model's numbers in a way that has no "
                "native form; take another file of this model",
            )


def _short(value: Any) -> str:
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else f"{text[:57]}…"
