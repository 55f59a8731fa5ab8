"""CPU milliseconds that a tree takes outside the model's passes: drawing, growing and finishing it.

    python benchmarks/draw_speed.py [--shortlist 1024] [--repeats 200] [--json]

Candidates are random and made beforehand, so that only the policy is timed, on one thread. CPU time
and the least of many repeats, since other work on the machine can only add to a time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass

import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.protocols import DraftHeadOutput, Frontier, TreePolicy
from dynaspec_cli.tree.registry import create_tree


@dataclass(frozen=True)
class Case:
    policy: str
    temperature: float
    draw: str = "auto"


CASES = (
    Case("dyspec", 0.0), Case("dyspec", 0.0, "sample"), Case("dyspec", 0.6), Case("dyspec", 1.0),
    Case("eagle2", 0.0), Case("eagle2", 0.6), Case("ddd", 0.6), Case("sequoia", 0.0),
    Case("sequoia", 0.6), Case("specinfer", 0.6), Case("chain", 0.6),
)  # fmt: skip
SIZES = ((64, 16, 16), (768, 20, 64))
"""Size, depth, width."""


class Candidates:
    """Rows of random scores for any frontier: ``pool`` rows, taken in turns."""

    def __init__(self, shortlist: int, width: int, pool: int = 1024) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = 6 * torch.randn(pool, shortlist, generator=generator)
        self.log_probs = torch.log_softmax(logits, -1)
        top = self.log_probs.topk(min(width, shortlist))
        self.log_q, self.columns = top.values + torch.log(torch.tensor(0.95)), top.indices
        self.all_ids = torch.arange(shortlist) * 7
        self.made: dict[tuple[int, int], DraftHeadOutput] = {}

    def of(self, level: int, rows: int) -> DraftHeadOutput:
        key = (level, rows)
        if key not in self.made:
            at = (torch.arange(rows) + 37 * level) % self.log_probs.shape[0]
            ids = self.all_ids[self.columns[at]]
            self.made[key] = DraftHeadOutput(
                self.log_q[at], ids, len(self.all_ids), self.log_probs[at], self.all_ids, False
            )
        return self.made[key]


def grow(policy: TreePolicy, candidates: Candidates) -> tuple[float, int, int]:
    """(CPU seconds outside ``candidates``, nodes, draft steps) of one tree."""
    spent, level, rows = 0.0, 0, 1
    begun = time.thread_time()
    state = policy.begin(0)
    spent += time.thread_time() - begun
    while rows:
        level += 1
        output = candidates.of(level, rows)
        begun = time.thread_time()
        frontier: Frontier | None = policy.grow(state, output)
        spent += time.thread_time() - begun
        rows = 0 if frontier is None else frontier.tokens.shape[0]
    begun = time.thread_time()
    tree = policy.finish(state)
    return spent + time.thread_time() - begun, tree.num_nodes, level


def measure(shortlist: int, repeats: int) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    rows = []
    for size, depth, width in SIZES:
        candidates = Candidates(shortlist, width)
        for case in CASES:
            config = TreeConfig(case.policy, size, depth, width, draw=case.draw)
            sampling = SamplingConfig(case.temperature, seed=1)
            policy = create_tree(config, sampling)
            grown = [grow(policy, candidates) for _ in range(repeats)]
            times = sorted(seconds for seconds, _, _ in grown)
            rows.append(
                {
                    "policy": case.policy, "temperature": case.temperature, "draw": case.draw,
                    "size": size, "nodes": sum(n for _, n, _ in grown) / repeats,
                    "steps": sum(steps for _, _, steps in grown) / repeats,
                    "least_ms": times[0] * 1e3, "median_ms": times[repeats // 2] * 1e3,
                }
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shortlist", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = measure(asked.shortlist, asked.repeats)
    if asked.json:
        print(json.dumps({"shortlist": asked.shortlist, "rows": rows}, indent=1))
        return
    for row in rows:
        print(
            f"{row['policy']:10} T={row['temperature']:<4} {row['draw']:6} size {row['size']:4}: "
            f"{row['nodes']:6.1f} nodes, {row['steps']:5.1f} steps, least {row['least_ms']:.3f}, "
            f"median {row['median_ms']:.3f} ms"
        )


if __name__ == "__main__":
    main()
