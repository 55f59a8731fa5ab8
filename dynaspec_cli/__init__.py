"""dynaspec: faster generation for large-vocabulary language models, with unchanged output.

Everything that a program needs is imported from here, and no PyTorch before its first use::

    from dynaspec_cli import Engine, GenerationConfig

    engine = Engine.load()
    print(engine.complete("The capital of France is", GenerationConfig(max_new_tokens=8)).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dynaspec_cli.config import (
        GenerationConfig,
        SamplingConfig,
        ShortlistConfig,
        TreeConfig,
    )
    from dynaspec_cli.engine.api import Engine
    from dynaspec_cli.engine.events import (
        DoneEvent,
        GenerationResult,
        NoticeEvent,
        StepStats,
        TokensEvent,
    )
    from dynaspec_cli.errors import DynaSpecError, UsageError

_PLACES = {
    "Engine": "engine.api",
    "GenerationConfig": "config",
    "SamplingConfig": "config",
    "TreeConfig": "config",
    "ShortlistConfig": "config",
    "TokensEvent": "engine.events",
    "NoticeEvent": "engine.events",
    "DoneEvent": "engine.events",
    "StepStats": "engine.events",
    "GenerationResult": "engine.events",
    "DynaSpecError": "errors",
    "UsageError": "errors",
}
"""The public names, in the order of their reference, and the modules that define them."""

__all__ = [
    "DoneEvent",
    "DynaSpecError",
    "Engine",
    "GenerationConfig",
    "GenerationResult",
    "NoticeEvent",
    "SamplingConfig",
    "ShortlistConfig",
    "StepStats",
    "TokensEvent",
    "TreeConfig",
    "UsageError",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
