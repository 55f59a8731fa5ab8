"""The plain chain: one branch, ``depth`` levels (at most ``size``); ``width`` is ignored."""

from __future__ import annotations

from dataclasses import replace

from dynaspec_cli.config import TreeConfig
from dynaspec_cli.tree.grown import GrownBest, GrownDrawn
from dynaspec_cli.tree.request import TreeRequest
from dynaspec_cli.tree.sampled import Drawing


def _narrow(config: TreeConfig) -> TreeConfig:
    depth = min(config.depth, config.nodes)
    return replace(config, width=1, depth=depth, size=depth)


class Chain(GrownBest):
    """The best token at every step."""

    name = "chain"
    logarithms = True
    whole_beam = True

    def __init__(self, config: TreeConfig) -> None:
        super().__init__(_narrow(config))


class ChainDrawn(GrownDrawn):
    """One draw at every step."""

    name = "chain"

    def __init__(self, config: TreeConfig, drawing: Drawing) -> None:
        super().__init__(_narrow(config), drawing)


def create(request: TreeRequest) -> Chain | ChainDrawn:
    if request.drawing is None:
        return Chain(request.config)
    return ChainDrawn(request.config, request.drawing)
