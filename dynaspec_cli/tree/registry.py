"""The tree policies by name. Importing this module imports no torch.

A policy's module has ``create(request: TreeRequest) -> TreePolicy``, and so has one that another
package gives by an entry point of the group "dynaspec.trees".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.registry import Entry, Registry

if TYPE_CHECKING:
    from dynaspec_cli.protocols import TreePolicy
    from dynaspec_cli.sampling.source import RandomSource
    from dynaspec_cli.tree.request import TreeFactory


def _own(module: str, description: str) -> Entry:
    return Entry(description, f"dynaspec_cli.tree.{module}:create")


_OWN = {
    "chain": _own("chain", "one branch of --tree-depth tokens"),
    "specinfer": _own("specinfer", "a fixed number of children at each level (SpecInfer)"),
    "sequoia": _own(
        "sequoia", "the fixed shape that is optimal for an acceptance by position (Sequoia)"
    ),
    "eagle2": _own(
        "eagle2", "expand the most probable nodes, verify the best --tree-size (EAGLE-2)"
    ),
    "ddd": _own("ddd", "eagle2 for as long as its beam stays probable (Dynamic Depth Decoding)"),
    "dyspec": _own(
        "dyspec", "grow where verification is expected to arrive, above a threshold (DySpec)"
    ),
    "auto": _own(
        "auto", "eagle2 with the depth and size that give most tokens per second (greedy only)"
    ),
}

TREES: Registry[TreeFactory] = Registry("tree", "--tree", "dynaspec.trees", _OWN)


_READ_BY = {
    "acceptance": ("sequoia",),
    "expansion": ("specinfer",),
    "ddd_steps": ("ddd",),
    "threshold": ("dyspec", "ddd"),
}
"""Settings of ``TreeConfig`` that only some of these policies read."""


def unread(config: TreeConfig, sampling: SamplingConfig) -> Iterator[str]:
    """What was asked for and has no effect, a sentence each. Another package's tree may read
    anything."""
    if config.policy in _OWN:
        for field, readers in _READ_BY.items():
            if getattr(config, field) is not None and config.policy not in readers:
                option = "--" + ("" if field.startswith("ddd") else "tree-") + field
                yield (
                    f"{option.replace('_', '-')} changes nothing with --tree {config.policy}: only "
                    f"{' and '.join(readers)} read{'s' * (len(readers) == 1)} it"
                )
    if config.verification == "traversal" and not config.draws(sampling):
        yield "--tree-verification traversal changes nothing: no children are drawn"


def create_tree(
    config: TreeConfig,
    sampling: SamplingConfig,
    source: RandomSource | None = None,
    acceptance: Sequence[float] | None = None,
    draws: bool = True,
) -> TreePolicy:
    """The policy that ``config.policy`` names, for *one request*: a policy that samples holds that
    request's random numbers, by default the draft stream of ``sampling.seed``. ``acceptance``: by
    position, as measured for the drafter; it counts where ``config`` has none. ``draws`` False: the
    drafter has no distribution to draw from, and its best tokens are taken for a sampling target
    too. Unknown names raise ``UsageError``, packages whose tree cannot be loaded
    ``DynaSpecError``.
    """
    from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
    from dynaspec_cli.tree.acceptance import EXAMPLE
    from dynaspec_cli.tree.request import TreeRequest
    from dynaspec_cli.tree.sampled import Drawing

    create = TREES.load(config.policy)
    config = replace(config, size=config.nodes)
    drawing = None
    if draws and config.draws(sampling):
        source = source or GeneratorSource(sampling.seed, DRAFT_STREAM)
        law = replace(sampling, temperature=config.temperature(sampling))
        drawing = Drawing(law, source, config.verification == "traversal")
    vector = config.acceptance or acceptance or EXAMPLE
    return create(TreeRequest(config, vector, drawing, sampling.greedy))
