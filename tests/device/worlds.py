"""Random worlds: what a drafter would say below a path, and both kinds of tree grown in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.device.candidates import Candidates
from dynaspec_cli.device.draw import Uniforms
from dynaspec_cli.device.growth import Finished, Growth, growth_of
from dynaspec_cli.device.uniforms import DrawnAhead
from dynaspec_cli.protocols import DraftHeadOutput, DraftTree, TreePolicy
from dynaspec_cli.sampling.source import DRAFT_STREAM, GeneratorSource
from dynaspec_cli.tree.registry import create_tree

Path = tuple[int, ...]
NAN = float("nan")


@dataclass(frozen=True)
class World:
    """``size`` tokens scored at each step; logits of spread ``heat``, or a few distinct ones
    (``ties``); ``log_mass`` of the shortlist."""

    seed: int
    size: int = 24
    heat: float = 2.0
    ties: bool = False
    log_mass: float = -0.05
    shared: bool = True

    def log_probs(self, path: Path) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}:{path}".encode()).digest()
        g = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        logits = torch.randn(self.size, generator=g) * self.heat
        if self.ties:
            logits = logits.round()
        return logits.log_softmax(0)

    def ids(self) -> Tensor:
        g = torch.Generator().manual_seed(self.seed)
        return torch.randperm(4 * self.size, generator=g)[: self.size].sort().values

    def scored(self, paths: list[Path], k: int) -> DraftHeadOutput:
        """As a shortlist on the host scores a frontier."""
        log_probs, ids = torch.stack([self.log_probs(path) for path in paths]), self.ids()
        order = torch.sort(log_probs, dim=1, descending=True, stable=True).indices[:, :k]
        best = log_probs.gather(1, order) + self.log_mass
        return DraftHeadOutput(best, ids[order], self.size, log_probs, ids, self.shared)

    def padded(self, paths: list[Path | None], k: int) -> Candidates:
        """The same in fixed shapes: NaN in dead rows, three columns more than there are tokens."""
        there = [path for path in paths if path is not None]
        scored = self.scored(there or [(0,)], k)
        assert scored.log_probs is not None
        assert scored.all_ids is not None
        columns = scored.ids.shape[1]
        log_q, ids = torch.full((len(paths), k), NAN), torch.full((len(paths), k), 7)
        log_probs = torch.full((len(paths), self.size + 3), NAN)
        rows = [i for i, path in enumerate(paths) if path is not None]
        log_q[rows], ids[rows] = -torch.inf, -1
        log_q[rows, :columns], ids[rows, :columns] = (
            scored.log_q[: len(rows)],
            scored.ids[: len(rows)],
        )
        log_probs[rows, : self.size] = scored.log_probs[: len(rows)]
        log_probs[rows, self.size :] = -torch.inf
        all_ids = torch.cat([scored.all_ids, torch.full((3,), -1)])
        return Candidates(log_q, ids, log_probs, all_ids)


def policy_of(
    config: TreeConfig, sampling: SamplingConfig, seed: int
) -> tuple[TreePolicy, GeneratorSource]:
    source = GeneratorSource(seed, DRAFT_STREAM)
    return create_tree(config, sampling, source), source


def host_tree(world: World, policy: TreePolicy, root: int) -> tuple[DraftTree, int]:
    """(tree, draft steps) of the host's policy."""
    state, paths, steps = policy.begin(root), [(root,)], 0
    while True:
        steps += 1
        frontier = policy.grow(state, world.scored(paths, policy.width))
        if frontier is None:
            return policy.finish(state), steps
        pairs = zip(frontier.source.tolist(), frontier.tokens.tolist(), strict=True)
        paths = [(*paths[source], token) for source, token in pairs]


def device_tree(
    world: World, policy: TreePolicy, root: int, source: GeneratorSource
) -> tuple[DraftTree, int]:
    """(tree, draft steps) of its counterpart in fixed shapes."""
    tree, steps, _ = device_round(world, policy, root, source)
    return tree, steps


def device_round(
    world: World, policy: TreePolicy, root: int, source: GeneratorSource
) -> tuple[DraftTree, int, Finished]:
    """The same, with what stays on the device."""
    growth = growth_of(policy, world.shared)
    assert growth is not None
    ahead = DrawnAhead(source, growth.most_uniforms())
    state = growth.begin(torch.tensor([root]), Uniforms(ahead.values, torch.tensor(0)))
    paths: list[Path | None] = [(root,)]
    for level in range(growth.depth):
        assert len(paths) == growth.rows(level)
        state, frontier = growth.grow(state, level, world.padded(paths, policy.width))
        if frontier is None:
            break
        rows = zip(*(field.tolist() for field in frontier), strict=True)
        paths = [_below(paths[source], token) if live else None for token, source, live in rows]
    done = growth.finish(state)
    tree, steps, used = growth.tree(done.packed, done.draws)
    ahead.settle(used)
    return tree, steps, done


def _below(path: Path | None, token: int) -> Path:
    assert path is not None
    return (*path, token)


def example(growth: Growth, size: int = 12) -> list[Candidates]:
    """Candidates of the shapes that a round has, level by level."""
    g = torch.Generator().manual_seed(0)
    levels = []
    for level in range(growth.depth):
        w, k = growth.rows(level), min(growth.width, size)
        log_probs = torch.randn(w, size, generator=g).log_softmax(1)
        best = log_probs.topk(k)
        levels.append(Candidates(best.values, best.indices, log_probs, torch.arange(size)))
    return levels
