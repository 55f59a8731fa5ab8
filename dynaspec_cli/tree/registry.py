"""The one list of tree policies; the command line's choices are read from it."""

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
from dynaspec_cli.tree.options import TreeOptions
from dynaspec_cli.tree.sampled import Drawing
from dynaspec_cli.tree.sequoia import Sequoia
from dynaspec_cli.tree.specinfer import SpecInfer


@dataclass(frozen=True)
class TreeRequest:
    """What a factory builds a policy from. ``drawing`` is None for a greedy target, whose drafts
    are never sampled."""

    config: TreeConfig
    options: TreeOptions
    drawing: Drawing | None


@dataclass(frozen=True)
class TreeEntry:
    """A policy's one-line ``description`` and its ``factory``."""

    description: str
    factory: Callable[[TreeRequest], TreePolicy]


def _dyspec(r: TreeRequest) -> TreePolicy:
    if r.drawing is None:
        return DySpecGreedy(r.config, r.options.threshold)
    return DySpecSampled(r.config, r.options.threshold, r.drawing)


def _auto(r: TreeRequest) -> TreePolicy:
    if r.drawing is not None:
        raise UsageError(
            "--tree auto shapes its trees by the clock, so a seed could not reproduce a sampled "
            "text; choose another tree, or --temperature 0"
        )
    return Auto(r.config)


TREES: dict[str, TreeEntry] = {
    "chain": TreeEntry("one branch of --tree-depth tokens", lambda r: Chain(r.config)),
    "specinfer": TreeEntry(
        "a fixed number of children at each level (SpecInfer)",
        lambda r: SpecInfer(r.config, r.options.expansion, r.drawing),
    ),
    "sequoia": TreeEntry(
        "the fixed shape that is optimal for an acceptance by position (Sequoia)",
        lambda r: Sequoia(r.config, r.options.acceptance, r.drawing),
    ),
    "eagle2": TreeEntry(
        "expand the most probable nodes, verify the best --tree-size (EAGLE-2)",
        lambda r: Eagle2(r.config),
    ),
    "ddd": TreeEntry(
        "eagle2 for as long as its beam stays probable (Dynamic Depth Decoding)",
        lambda r: DynamicDepth(r.config, r.options.ddd_threshold, r.options.ddd_steps),
    ),
    "dyspec": TreeEntry(
        "grow where verification is expected to arrive, above a threshold (DySpec)", _dyspec
    ),
    "auto": TreeEntry(
        "eagle2 with the depth and size that give most tokens per second (greedy only)", _auto
    ),
}


def tree_names() -> tuple[str, ...]:
    """Names that ``--tree`` takes."""
    return tuple(TREES)


def create_tree(
    config: TreeConfig,
    sampling: SamplingConfig,
    options: TreeOptions | None = None,
    source: RandomSource | None = None,
) -> TreePolicy:
    """The policy that ``config.policy`` names, for *one request*: a policy that samples holds that
    request's random numbers, by default the draft stream of ``sampling.seed``. Unknown names raise
    UsageError.
    """
    entry = TREES.get(config.policy)
    if entry is None:
        raise UsageError(f"--tree: expected one of {', '.join(TREES)}, got {config.policy!r}")
    options = options or TreeOptions()
    drawing = None
    if not sampling.greedy:
        source = source or GeneratorSource(sampling.seed, DRAFT_STREAM)
        drawing = Drawing(sampling, options.draft_temperature, source)
    return entry.factory(TreeRequest(config, options, drawing))
