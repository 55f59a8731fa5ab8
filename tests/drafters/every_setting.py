"""Every shortlist with every tree, greedy and sampled in turn."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig

TREES = ("chain", "specinfer", "sequoia", "eagle2", "ddd", "dyspec")
SHORTLISTS = ("full", "fr-spec", "vocabtrim", "pa-fr", "nanospec", "dynaspec")
WITHOUT_FILES = ("full", "nanospec")


def shortlist(name: str, bundle: Path | str) -> ShortlistConfig:
    """``name`` of a small size, from ``bundle`` where it needs one."""
    where = name if name in WITHOUT_FILES else f"{name}={bundle}"
    return ShortlistConfig(where, None if name == "full" else 64)


def every_setting(bundle: Path | str, new: int = 8) -> list[GenerationConfig]:
    """Of ``new`` tokens each, with another seed each."""
    return [
        GenerationConfig(
            new,
            sampling=SamplingConfig(
                temperature=(0.0, 0.9)[(number // 6 + number) % 2], seed=number
            ),
            tree=TreeConfig(tree, size=6, depth=3, width=3),
            shortlist=shortlist(name, bundle),
        )
        for number, (name, tree) in enumerate(product(SHORTLISTS, TREES))
    ]
