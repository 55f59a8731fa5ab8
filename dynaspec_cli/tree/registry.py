"""Makes the tree policies that names.py lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.protocols import TreePolicy
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource, RandomSource
from dynaspec_cli.tree.acceptance import EXAMPLE
from dynaspec_cli.tree.auto import Auto
from dynaspec_cli.tree.chain import Chain, ChainDrawn
from dynaspec_cli.tree.ddd import DynamicDepth, DynamicDepthDrawn
from dynaspec_cli.tree.dyspec import DySpecBest, DySpecDrawn
from dynaspec_cli.tree.eagle2 import Eagle2, Eagle2Drawn
from dynaspec_cli.tree.names import TREES, tree_names
from dynaspec_cli.tree.sampled import Drawing
from dynaspec_cli.tree.sequoia import Sequoia
from dynaspec_cli.tree.specinfer import SpecInfer

__all__ = ["TREES", "create_tree", "tree_names"]


@dataclass(frozen=True)
class TreeRequest:
    """What a factory builds a policy from. ``drawing`` is None where children are the best tokens,
    which are not drawn."""

    config: TreeConfig
    sampling: SamplingConfig
    acceptance: Sequence[float]
    drawing: Drawing | None


def _auto(r: TreeRequest) -> TreePolicy:
    if not r.sampling.greedy:
        raise UsageError(
            "--tree auto shapes its trees by the clock, so a seed could not reproduce a sampled "
            "text; choose another tree, or --temperature 0"
        )
    if r.drawing is not None:
        raise UsageError("--tree auto: expected --tree-draw auto or best, got sample")
    return Auto(r.config)


def _either(
    best: Callable[[TreeConfig], TreePolicy], drawn: Callable[[TreeConfig, Drawing], TreePolicy]
) -> Callable[[TreeRequest], TreePolicy]:
    def make(r: TreeRequest) -> TreePolicy:
        return best(r.config) if r.drawing is None else drawn(r.config, r.drawing)

    return make


_FACTORIES: dict[str, Callable[[TreeRequest], TreePolicy]] = {
    "chain": _either(Chain, ChainDrawn),
    "specinfer": lambda r: SpecInfer(r.config, r.drawing),
    "sequoia": lambda r: Sequoia(r.config, r.acceptance, r.drawing),
    "eagle2": _either(Eagle2, Eagle2Drawn),
    "ddd": _either(DynamicDepth, DynamicDepthDrawn),
    "dyspec": _either(DySpecBest, DySpecDrawn),
    "auto": _auto,
}


def create_tree(
    config: TreeConfig,
    sampling: SamplingConfig,
    source: RandomSource | None = None,
    acceptance: Sequence[float] | None = None,
) -> TreePolicy:
    """The policy that ``config.policy`` names, for *one request*: a policy that samples holds that
    request's random numbers, by default the draft stream of ``sampling.seed``. ``acceptance``: by
    position, as measured for the drafter; it counts where ``config`` has none. Unknown names raise
    UsageError.
    """
    factory = _FACTORIES.get(config.policy)
    if factory is None:
        raise UsageError(f"--tree: expected one of {', '.join(TREES)}, got {config.policy!r}")
    drawing = None
    if config.draws(sampling):
        source = source or GeneratorSource(sampling.seed, DRAFT_STREAM)
        law = replace(sampling, temperature=config.temperature(sampling))
        drawing = Drawing(law, source, config.verification == "traversal")
    return factory(
        TreeRequest(config, sampling, config.acceptance or acceptance or EXAMPLE, drawing)
    )
