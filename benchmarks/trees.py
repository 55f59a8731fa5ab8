"""Measures what docs/results/trees says, and writes its tables.

    python benchmarks/trees.py measure OUT --data DATA --target MODEL --drafter FOLDER
    python benchmarks/trees.py tables OUT

``measure`` runs ``dynaspec bench`` for every arm below, first few prompts of each, then more;
killed, it goes on where it stopped, and larger --limits add prompts. --target and --drafter: the
second pair, a small language model that drafts for a larger one; without them the default model and
its own drafter are measured alone. ``tables`` counts what lies in OUT into counts.json in
docs/results/trees and writes the tables of its README anew from that; without OUT, from the counts
that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUITES = {"c4": "c4", "openwebtext": "openwebtext", "cnn-dailymail": "cnn_dailymail"}
PROMPT_TOKENS = 128
FIXED = ("sequoia", "specinfer", "eagle2", "ddd", "chain")
HELD_OUT = 4
"""Prompts of each text, its last ones, on which sequoia's acceptance is measured."""
PAGE = Path(__file__).parents[1] / "docs" / "results" / "trees"
FULL, FULL_768 = 1 / 256, 1 / 3072
"""Thresholds so low that dyspec fills a budget of 64 or 768, as Algorithm 1 does; its own stops
earlier."""


@dataclass(frozen=True)
class Arm:
    """One run of the benchmark. ``methods``: trees of ``size`` nodes over the pair's shortlist, or
    whole SPECs. ``options`` go before those that all arms share. ``most``: prompts a text at most;
    ``tokens``: new tokens at most; ``small`` False: not for the small language model."""

    name: str
    title: str
    options: tuple[str, ...]
    methods: tuple[str, ...]
    size: int = 64
    most: int = 1000
    tokens: int = 1000
    small: bool = True


def drawn_at(
    temperature: float, draw: str, threshold: float | None = None, depth: int = 16, width: int = 16
) -> tuple[str, ...]:
    """DySpec's experiment: drafts at temperature 0.6. The paper bounds neither levels (fewer than
    10 at 64 nodes and than 30 at 768, its section 5.3) nor children."""
    options = ["--temperature", f"{temperature:g}", "--tree-draw", draw]
    options += [
        "--draft-temperature",
        "0.6",
        "--tree-depth",
        str(depth),
        "--tree-width",
        str(width),
    ]
    if threshold is not None:
        options += ["--tree-threshold", f"{threshold:g}"]
    return tuple(options)


_SERVED = ("ar", "full+eagle2@16", "nanospec+dyspec@8", "dynaspec@1024+dyspec@8")

ARMS = (
    Arm("t0.6", "Target at 0.6, trees of 64", drawn_at(0.6, "auto"), ("ar", "dyspec", *FIXED)),
    Arm("t0.6-full", "", drawn_at(0.6, "auto", FULL), ("dyspec",)),
    Arm("t0-drawn", "Greedy target, drawn trees of 64", drawn_at(0, "sample"),
        ("ar", "dyspec", *FIXED)),
    Arm("t0-drawn-full", "", drawn_at(0, "sample", FULL), ("dyspec",)),
    Arm("t0-best", "Greedy target, best tokens, trees of 64", drawn_at(0, "best"),
        ("ar", "dyspec", *FIXED, "auto")),
    Arm("t0-best-full", "", drawn_at(0, "best", FULL), ("dyspec",)),
    # The paper's threshold for 768 nodes, and Algorithm 1's budget.
    Arm("t0.6-768", "Target at 0.6, trees of 768", drawn_at(0.6, "auto", 0.001, 30, 64),
        ("ar", "dyspec", "sequoia", "specinfer"), 768, most=3, tokens=32),
    Arm("t0.6-768-full", "", drawn_at(0.6, "auto", FULL_768, 30, 64), ("dyspec",), 768, most=3,
        tokens=32),
    Arm("recommended", "Sampled as the model recommends", ("--sampling", "model"), _SERVED,
        small=False),
    Arm("t1", "Temperature 1, no filters", ("--temperature", "1"), _SERVED, small=False),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A target and a drafter as options of ``dynaspec``, and what the drafter scores."""

    name: str
    title: str
    options: tuple[str, ...]
    shortlist: str


TITLES = {
    "small-lm": "A small language model drafts (7 M parameters, for SmolLM2 135M)",
    "eagle": "The EAGLE drafter of the default model",
}


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
    temperature, draw, width = arm.options[1], arm.options[3], int(arm.options[9])
    wide = "" if width <= 16 else f"-{width}"
    path: Path = asked.out / f"{pair.name}-acceptance-{temperature}-{draw}{wide}.txt"
    if not path.exists():
        positions = ("--tree-width", str(width)) if wide else ()
        vector = bench(
            *pair.options, "--measure-acceptance", "--suite", str(held_out(asked.out, asked.data)),
            "--max-prompt-tokens", str(PROMPT_TOKENS), "--max-new-tokens", "48",
            *arm.options[:6], *positions, "--threads", str(asked.threads), "--quiet", keep=True,
        )  # fmt: skip
        path.write_text(vector.strip(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def run(pair: Pair, arm: Arm, limit: int, asked: argparse.Namespace) -> None:
    """One arm up to ``limit`` prompts a text."""
    options = [*pair.options, "--resume", "--out", str(asked.out / f"{pair.name}-{arm.name}")]
    for name in SUITES:
        options += ["--suite", name]
    for method in arm.methods:
        whole = method == "ar" or "+" in method
        options += ["--method", method if whole else f"{pair.shortlist}+{method}@{arm.size}"]
    if "sequoia" in arm.methods:
        options += ["--tree-acceptance", acceptance(pair, arm, asked)]
    bench(
        *options, *arm.options, "--data-dir", str(asked.data),
        "--limit", str(min(limit, arm.most)), "--max-prompt-tokens", str(PROMPT_TOKENS),
        "--prompt-format", "raw", "--max-new-tokens", str(min(asked.tokens, arm.tokens)),
        "--warmup", "0", "--threads", str(asked.threads), "--seed", "1", "--quiet",
    )  # fmt: skip


def measure(asked: argparse.Namespace) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    speed = asked.out / "draw_speed.json"
    if not speed.exists():
        script = str(Path(__file__).with_name("draw_speed.py"))
        command = [sys.executable, script, "--json"]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        speed.write_text(found, encoding="utf-8")
    pairs = [Pair("eagle", TITLES["eagle"], (), asked.shortlist)]
    if asked.target and asked.drafter:
        options = ("--model", asked.target, "--drafter", asked.drafter)
        pairs.insert(0, Pair("small-lm", TITLES["small-lm"], options, "full"))
    for limit in asked.limits:
        for arm in ARMS:
            if asked.arms and arm.name not in asked.arms:
                continue
            for pair in pairs:
                if pair.name == "small-lm" and not arm.small:
                    continue
                print(f"{pair.name} {arm.name}, {limit} prompts a text", file=sys.stderr)
                run(pair, arm, limit, asked)


Counts = dict[str, dict[str, Any]]
"""Folder of an arm -> {"settings", "methods": {SPEC: one list a prompt: COLUMNS}}."""
COLUMNS = ("suite", "steps", "accepted", "verified", "drawn", "distinct", "tokens", "seconds")


def count(out: Path) -> Counts:
    from dynaspec_cli.bench.store import read_samples

    counts: Counts = {}
    for name in TITLES:
        for arm in ARMS:
            folder = out / f"{name}-{arm.name}"
            if not (folder / "samples.jsonl").exists():
                continue
            methods: dict[str, list[list[Any]]] = {}
            for sample in read_samples(folder / "samples.jsonl", "tables"):
                sums = [
                    sum(getattr(step, field) for step in sample.steps)
                    for field in ("accepted", "drafted", "drawn", "distinct")
                ]
                row = [sample.suite, len(sample.steps), *sums, sample.decode_tokens]
                methods.setdefault(sample.method, []).append([*row, round(sample.decode_s, 3)])
            record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
            kept = ("model", "drafter", "dtype", "threads", "cpu", "commit", "max_new_tokens")
            settings = {key: record["settings"].get(key) for key in kept}
            settings["tree_acceptance"] = record["settings"].get("tree_acceptance")
            counts[folder.name] = {"settings": settings, "methods": methods}
    return counts


def tables(asked: argparse.Namespace) -> None:
    from tree_tables import write

    PAGE.mkdir(parents=True, exist_ok=True)
    if asked.out is not None:
        counts = {"columns": COLUMNS, "arms": count(asked.out)}
        speed = asked.out / "draw_speed.json"
        if speed.exists():
            counts["speed"] = json.loads(speed.read_text(encoding="utf-8"))
        (PAGE / "counts.json").write_text(json.dumps(counts) + "\n", encoding="utf-8")
    write(PAGE, json.loads((PAGE / "counts.json").read_text(encoding="utf-8")), ARMS, TITLES)


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
    step.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], help="only these")
    step.add_argument("--tokens", type=int, default=128, help="new tokens")
    step.add_argument("--threads", type=int, default=os.cpu_count())
    step.set_defaults(run=measure)
    step = steps.add_parser("tables")
    step.add_argument("out", type=Path, nargs="?")
    step.set_defaults(run=tables)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
