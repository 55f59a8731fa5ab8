"""The kinds of target, in the order in which they are asked. Imports no torch.

A kind is a function from ``TargetRequest`` (kind.py) to a target, or to the reason why the folder
is none of its own; the first that takes it runs it. Another package's kinds (entry points of the
group "dynaspec.targets") are asked first. GGUF files of families that are read here
(gguf_native.py) become native targets before a kind is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynaspec_cli.registry import Entry, Registry

if TYPE_CHECKING:
    from dynaspec_cli.target.kind import TargetKind

TARGETS: Registry[TargetKind] = Registry(
    "kind of target",
    "--model",
    "dynaspec.targets",
    {
        "native": Entry(
            "dynaspec's own layers, on a CPU", "dynaspec_cli.target.load:native_target"
        ),
        "static": Entry(
            "dynaspec's own layers in fixed shapes, on CUDA",
            "dynaspec_cli.target.load:static_target",
        ),
        "transformers": Entry(
            "any causal language model of transformers",
            "dynaspec_cli.target.load:transformers_target",
        ),
    },
)
