"""What docs/results/trees says: DySpec's experiment (arXiv 2410.11744, Tables 1, 4) on two pairs.

    python benchmarks/trees.py measure OUT --data DATA --target MODEL --drafter FOLDER
    python benchmarks/trees.py tables OUT

``measure`` runs ``dynaspec bench`` for every arm below, first few prompts of each arm, then more;
killed, it goes on where it stopped, and a larger --limit adds prompts. --target and --drafter: the
second pair, a small language model that drafts for a larger one; without them the default model and
its own drafter are measured alone. ``tables`` counts what lies in OUT into docs/results/trees and
writes the tables of its README anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SUITES = {"c4": "c4", "openwebtext": "openwebtext", "cnn-dailymail": "cnn_dailymail"}
PROMPT_TOKENS, DRAFT_TEMPERATURE = 128, 0.6
FIXED = ("sequoia", "specinfer", "eagle2", "ddd", "chain")
HELD_OUT = 4
"""Prompts of each text, its last ones, on which sequoia's acceptance is measured."""


@dataclass(frozen=True)
class Arm:
    """One run of the benchmark. ``threshold`` None: the policy's own. ``most``: prompts a text at
    most; ``tokens``: new tokens at most."""

    name: str
    temperature: float
    draw: str
    methods: tuple[str, ...]
    threshold: float | None = None
    size: int = 64
    depth: int = 16
    width: int = 16
    most: int = 1000
    tokens: int = 1000


FULL = 1 / 256
"""A threshold so low that dyspec fills the budget, as Algorithm 1 does; its own stops earlier."""

ARMS = (
    Arm("t0.6", 0.6, "auto", ("ar", "dyspec", *FIXED)),
    Arm("t0.6-full", 0.6, "auto", ("dyspec",), FULL),
    Arm("t0-drawn", 0.0, "sample", ("ar", "dyspec", *FIXED)),
    Arm("t0-drawn-full", 0.0, "sample", ("dyspec",), FULL),
    Arm("t0-best", 0.0, "best", ("ar", "dyspec", *FIXED, "auto")),
    Arm("t0-best-full", 0.0, "best", ("dyspec",), FULL),
    Arm(
        "t0.6-768", 0.6, "auto", ("ar", "dyspec", "sequoia", "specinfer", "eagle2"),
        0.001, 768, 20, 64, most=4, tokens=32,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A target and a drafter as options of ``dynaspec``, and what the drafter scores."""

    name: str
    options: tuple[str, ...]
    shortlist: str


def bench(*options: str, keep: bool = False) -> str:
    """Standard output of ``dynaspec bench``, where ``keep``."""
    command = [sys.executable, "-m", "dynaspec_cli", "bench", *options]
    out = subprocess.PIPE if keep else None
    return subprocess.run(command, check=True, stdout=out, text=True).stdout


def held_out(out: Path, data: Path) -> Path:
    """A suite of prompts that no arm uses."""
    path = out / "held_out.jsonl"
    if not path.exists():
        lines = []
        for stem in SUITES.values():
            lines += (data / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()[-HELD_OUT:]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def acceptance(pair: Pair, arm: Arm, asked: argparse.Namespace) -> str:
    """Sequoia's vector for this pair, target temperature and way of drawing: measured once."""
    path = asked.out / f"{pair.name}-acceptance-{arm.temperature:g}-{arm.draw}.txt"
    if not path.exists():
        vector = bench(
            *pair.options, "--measure-acceptance", "--suite", str(held_out(asked.out, asked.data)),
            "--max-prompt-tokens", str(PROMPT_TOKENS), "--max-new-tokens", "48",
            "--temperature", str(arm.temperature), "--tree-draw", arm.draw,
            "--draft-temperature", str(DRAFT_TEMPERATURE), "--threads", str(asked.threads),
            "--quiet", keep=True,
        )  # fmt: skip
        path.write_text(vector.strip(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def run(pair: Pair, arm: Arm, limit: int, asked: argparse.Namespace) -> None:
    """One arm up to ``limit`` prompts a text."""
    options = [*pair.options, "--resume", "--out", str(asked.out / f"{pair.name}-{arm.name}")]
    for name in SUITES:
        options += ["--suite", name]
    for method in arm.methods:
        spec = method if method == "ar" else f"{pair.shortlist}+{method}@{arm.size}"
        options += ["--method", spec]
    if "sequoia" in arm.methods:
        options += ["--tree-acceptance", acceptance(pair, arm, asked)]
    if arm.threshold is not None:
        options += ["--tree-threshold", str(arm.threshold)]
    bench(
        *options, "--data-dir", str(asked.data), "--limit", str(min(limit, arm.most)),
        "--max-prompt-tokens", str(PROMPT_TOKENS), "--prompt-format", "raw",
        "--max-new-tokens", str(min(asked.tokens, arm.tokens)), "--warmup", "0",
        "--temperature", str(arm.temperature), "--draft-temperature", str(DRAFT_TEMPERATURE),
        "--tree-draw", arm.draw, "--tree-depth", str(arm.depth), "--tree-width", str(arm.width),
        "--threads", str(asked.threads), "--seed", "1", "--quiet",
    )  # fmt: skip


def measure(asked: argparse.Namespace) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    pairs = [Pair("eagle", (), asked.shortlist)]
    if asked.target and asked.drafter:
        options = ("--model", asked.target, "--drafter", asked.drafter)
        pairs.insert(0, Pair("small-lm", options, "full"))
    for limit in asked.limits:
        for arm in ARMS:
            for pair in pairs:
                print(f"{pair.name} {arm.name}, {limit} prompts a text", file=sys.stderr)
                run(pair, arm, limit, asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("measure")
    step.add_argument("out", type=Path)
    step.add_argument("--data", type=Path, required=True, help="where c4.jsonl and others lie")
    step.add_argument("--target", help="of the small language model")
    step.add_argument("--drafter", help="the small language model")
    step.add_argument("--shortlist", default="dynaspec@2048", help="of the EAGLE drafter")
    step.add_argument("--limits", type=int, nargs="+", default=[5, 15, 50], help="prompts a text")
    step.add_argument("--tokens", type=int, default=128, help="new tokens")
    step.add_argument("--threads", type=int, default=os.cpu_count())
    step.set_defaults(run=measure)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
