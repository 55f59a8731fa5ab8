"""Makes the tree policies that names.py lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.protocols import TreePolicy
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource, RandomSource
from dynaspec_cli.tree.auto import Auto
from dynaspec_cli.tree.chain import Chain
from dynaspec_cli.tree.ddd import DynamicDepth
from dynaspec_cli.tree.dyspec import DySpecGreedy, DySpecSampled
from dynaspec_cli.tree.eagle2 import Eagle2
from dynaspec_cli.tree.names import TREES, tree_names
from dynaspec_cli.tree.options import TreeOptions
from dynaspec_cli.tree.sampled import Drawing
from dynaspec_cli.tree.sequoia import Sequoia
from dynaspec_cli.tree.specinfer import SpecInfer

__all__ = ["TREES", "create_tree", "tree_names"]


@dataclass(frozen=True)
class TreeRequest:
    """What a factory builds a policy from. ``drawing`` is None where drafts are not sampled,
    as for a greedy target."""

    config: TreeConfig
    options: TreeOptions
    drawing: Drawing | None
    greedy: bool


def _dyspec(r: TreeRequest) -> TreePolicy:
    if r.drawing is None:
        return DySpecGreedy(r.config)
    return DySpecSampled(r.config, r.drawing)


def _auto(r: TreeRequest) -> TreePolicy:
    if not r.greedy:
        raise UsageError(
            "--tree auto shapes its trees by the clock, so a seed could not reproduce a sampled "
            "text; choose another tree, or --temperature 0"
        )
    return Auto(r.config)


_FACTORIES: dict[str, Callable[[TreeRequest], TreePolicy]] = {
    "chain": lambda r: Chain(r.config),
    "specinfer": lambda r: SpecInfer(r.config, r.options.expansion, r.drawing),
    "sequoia": lambda r: Sequoia(r.config, r.options.acceptance, r.drawing),
    "eagle2": lambda r: Eagle2(r.config),
    "ddd": lambda r: DynamicDepth(r.config, r.options.ddd_steps),
    "dyspec": _dyspec,
    "auto": _auto,
}


def create_tree(
    config: TreeConfig,
    sampling: SamplingConfig,
    options: TreeOptions | None = None,
    source: RandomSource | None = None,
    draws: bool = True,
) -> TreePolicy:
    """The policy that ``config.policy`` names, for *one request*: a policy that samples holds that
    request's random numbers, by default the draft stream of ``sampling.seed``. ``draws`` False: the
    drafter has no distribution to draw from, and its best tokens are taken for a sampling target
    too. Unknown names raise UsageError.
    """
    factory = _FACTORIES.get(config.policy)
    if factory is None:
        raise UsageError(f"--tree: expected one of {', '.join(TREES)}, got {config.policy!r}")
    options = options or TreeOptions()
    drawing = None
    if not sampling.greedy and draws:
        source = source or GeneratorSource(sampling.seed, DRAFT_STREAM)
        drawing = Drawing(sampling, options.draft_temperature, source)
    return factory(TreeRequest(config, options, drawing, sampling.greedy))
