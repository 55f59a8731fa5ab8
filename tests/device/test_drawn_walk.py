"""The walk of a drawn tree in fixed shapes, against the host's: one tree, one p, one source."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling.source import GeneratorSource
from dynaspec_cli.sampling.verify import SampledDrafts, verify_sampled
from dynaspec_cli.target.static.drawn import drawn_path
from dynaspec_cli.target.static.tree import rows_of_tree
from dynaspec_cli.unread_tree import UnreadDraws

from .worlds import World, device_round, policy_of

PADDED = 32
LAWS = ("near q", "q itself", "drafted alone", "shortlist alone", "anything")
CONFIGS = {
    "chain": TreeConfig("chain", 4, depth=4, width=1, draw="sample"),
    "eagle2": TreeConfig("eagle2", 9, depth=3, width=3, draw="sample"),
    "ddd": TreeConfig("ddd", 9, depth=3, width=3, draw="sample"),
    "dyspec": TreeConfig("dyspec", 20, depth=4, width=4),
    "few tokens": TreeConfig("eagle2", 9, depth=3, width=3, draw="sample"),
    "sequoia": TreeConfig("sequoia", 12, depth=4, width=4),
    "specinfer": TreeConfig("specinfer", 30, depth=3, expansion=(3, 2, 2)),
    "repeats": TreeConfig("specinfer", 30, depth=3, expansion=(4, 3, 1)),
}
SIZES = {"repeats": 5, "few tokens": 2}


def target_laws(kind: str, tree: DraftTree, vocab: int, g: torch.Generator) -> Tensor:
    """p float32 [PADDED, vocab]: what a walk may meet, the borders of certainty among it."""
    p = torch.softmax(torch.randn(PADDED, vocab, generator=g) * 2, -1)
    p = p * (torch.rand(p.shape, generator=g) < 0.8)
    assert isinstance(tree.q, SampledDrafts)
    for row in tree.q.nodes:
        draft = tree.q.nodes[row]
        q = torch.zeros(vocab).scatter(0, draft.ids, draft.q.float())
        if kind == "near q":
            p[row] = 0.7 * q + 0.3 * p[row]
        elif kind == "q itself":
            p[row] = q
        elif kind == "shortlist alone":
            p[row] = q * torch.rand(vocab, generator=g)
        elif kind == "drafted alone":
            p[row] *= torch.zeros(vocab).scatter(0, tree.tokens[tree.parents == row], 1.0)
    empty = ~(p.sum(1) > 0)
    p[empty, 5] = 0.25
    return p


def padded(draws: UnreadDraws) -> UnreadDraws:
    law = torch.nn.functional.pad(draws.law, (0, PADDED - draws.law.numel()), value=-1)
    return replace(draws, law=law)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_draws_what_the_host_draws(name: str, kind: str) -> None:
    """The same path, the same token, and the same number of uniforms from one source."""
    lengths = set()
    for seed in range(12):
        world = World(seed, size=SIZES.get(name, 14), heat=1.0 + seed % 3)
        policy, source = policy_of(CONFIGS[name], SamplingConfig(1.0), seed)
        tree, _, done = device_round(world, policy, 3, source)
        assert done.draws is not None
        count = done.rows[:1]
        n = (done.rows.numel() - 1) // 2
        assert int(count) == tree.tokens.numel()
        assert int(done.draws.law.max()) < sum(done.draws.widths)
        assert done.rows[1 : 1 + int(count)].tolist() == tree.tokens.tolist()
        parents = torch.nn.functional.pad(done.rows[1 + n :], (0, PADDED - n), value=7)
        rows = rows_of_tree(parents, count)
        draws, vocab = padded(done.draws), 4 * world.size
        host, ours = GeneratorSource(seed), GeneratorSource(seed)
        g = torch.Generator().manual_seed(seed)
        for _ in range(5):
            p = target_laws(kind, tree, vocab, g)
            expected = verify_sampled(tree, lambda row, p=p: p[row], host)
            path, bonus, used, mass = drawn_path(rows, p, ours.ahead(n + 1), draws)
            assert path.rows[: int(path.size)].tolist() == expected.path.tolist()
            assert int(bonus) == expected.bonus
            assert bool(mass)
            ours.skip(int(used))
            assert ours.uniform() == host.uniform()
            lengths.add(expected.path.numel())
    assert len(lengths) > 1 or kind == "q itself"


def test_tokens_that_are_drawn_again_are_met() -> None:
    """Else the case above would not try them."""
    policy, source = policy_of(CONFIGS["repeats"], SamplingConfig(1.0), 0)
    _, _, done = device_round(World(0, size=5), policy, 3, source)
    assert done.draws is not None
    rows = done.draws.row[done.draws.row >= 0].tolist()
    assert len(set(rows)) < len(rows)
