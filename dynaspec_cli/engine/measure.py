"""Measures what rounds cost on this machine, once for a machine, model, dtype, thread count and
drafter; the table is kept in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.engine.clock import PhaseClock
from dynaspec_cli.engine.draft import Draft, Speculation
from dynaspec_cli.engine.events import StepStats
from dynaspec_cli.engine.prefix_cache import PrefixCache
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Committed, DraftTree, Target, TargetOutput
from dynaspec_cli.sampling.verify import verify_greedy
from dynaspec_cli.target.cache_dir import cache_root, make_folder, write_text
from dynaspec_cli.tree.registry import create_tree
from dynaspec_cli.tuning.costs import ROWS, CostTable
from dynaspec_cli.tuning.machine import cpu_name
from dynaspec_cli.unread_tree import UnreadTree

PROMPT_TOKENS = 64
FEWEST_TURNS, MOST_TURNS = 3, 8
"""Timed passes of a size. The sizes take turns and the fastest pass of each counts, since whatever
else runs can only slow it down; turns go on while one of the last two still found a size faster."""
GAIN = 0.97
"""Of the fastest so far, what is faster."""
READINGS = 3
STEPS = 4
"""Draft steps of a measured round."""
SLOW_MS = 150.0
"""A pass over one row from which on the largest sizes are not measured: they would take seconds,
and such a machine does not verify them."""
FEW_ROWS = 9
ENOUGH = 16
"""Verifications that can contradict a table: a quarter of them must."""
CONTRADICTED = 0.85
"""Of the table's pass over one row, what says that it is wrong."""


def costs_of(target: Target, parts: Speculation) -> CostTable:
    """The table for a target and what drafts for it: kept, or measured now and kept where the
    cache folder can be written."""
    path = _place(target, parts)
    try:
        return CostTable.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, DynaSpecError):
        table = measure(target, parts)
    try:
        make_folder(path.parent)
        write_text(path, table.to_json())
    except (OSError, DynaSpecError):
        pass  # a read-only cache: measured anew by the next process
    return table


def reconsider(
    target: Target, parts: Speculation, table: CostTable, steps: Sequence[StepStats]
) -> bool:
    """Drop the kept table, so that the next process measures anew, if verifications show that it
    was taken while something else ran; was it dropped? Requests of this process keep theirs.

    A verification never reads less than a pass over one row does, so where several were faster than
    the table has it for one row, the table is wrong.
    """
    passes = sorted(1e3 * step.seconds.get("verify", math.inf) for step in steps)
    if len(passes) < ENOUGH or passes[ENOUGH // 4] > CONTRADICTED * table.pass_ms[0]:
        return False
    with contextlib.suppress(OSError):
        _place(target, parts).unlink()
    return True


def _place(target: Target, parts: Speculation) -> Path:
    return cache_root() / "costs" / f"{_key(target, parts)}.json"


def _key(target: Target, parts: Speculation) -> str:
    made_of: tuple[Any, ...] = (
        5,
        cpu_name() if target.device.type == "cpu" else torch.cuda.get_device_name(target.device),
        torch.get_num_threads(),
        target.kernels,
        target.head_hash(),
        target.num_layers,
        str(target.dtype),
        target.head_weight().format,
        parts.drafter.name,
        sorted(parts.drafter.describe().items(), key=lambda item: item[0]),
        None if parts.shortlist is None else (parts.shortlist.name, parts.shortlist.size),
    )
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]


def measure(target: Target, parts: Speculation) -> CostTable:
    """Times passes of the target over trees of each size, and a chain of draft steps."""
    vocab = target.vocab_size
    prompt = torch.arange(PROMPT_TOKENS) * 7919 % vocab
    cache: PrefixCache[Any, Any] = PrefixCache(target)
    for _ in cache.read(prompt, PROMPT_TOKENS + 1, parts.drafter.taps):
        pass
    state, prefill = cache.state, cache.output
    trees = {
        rows: DraftTree(torch.arange(rows) % vocab, torch.tensor([-1, *[0] * (rows - 1)]))
        for rows in ROWS
    }

    def verify(rows: int) -> None:
        target.verify(state, trees[rows]).argmax()

    verify(1)
    first = _timed(target, lambda: verify(1))
    rows = [n for n in ROWS if n <= FEW_ROWS or first < SLOW_MS]
    fastest = dict.fromkeys(rows, math.inf)
    turn = useful = 0
    while turn < FEWEST_TURNS or (turn < MOST_TURNS and turn - useful < 2):
        turn += 1
        for n in rows:
            spent = _timed(target, lambda n=n: verify(n))  # type: ignore[misc]
            useful = turn if spent < GAIN * fastest[n] else useful
            fastest[n] = min(fastest[n], spent)

    base, step = _drafting_ms(target, parts, cache, prefill, turn + 1)
    return CostTable(
        tuple(rows),
        tuple(fastest[n] for n in rows),
        step,
        _read_ms(target, parts, Committed(prefill, torch.arange(PROMPT_TOKENS - 1), prompt[1:])),
        base,
    )


def _drafting_ms(
    target: Target,
    parts: Speculation,
    cache: PrefixCache[Any, Any],
    prefill: TargetOutput,
    turns: int,
) -> tuple[float, float]:
    """(of a round whatever its steps, of a draft step), from rounds of one step and of ``STEPS``:
    the drafter grows a chain, and its shortlist learns from the chain's verification."""
    one, more = (_round_ms(target, parts, cache, prefill, steps, turns) for steps in (1, STEPS))
    step = max(0.0, more - one) / (STEPS - 1)
    return max(0.0, one - step), step


def _round_ms(
    target: Target,
    parts: Speculation,
    cache: PrefixCache[Any, Any],
    prefill: TargetOutput,
    steps: int,
    turns: int,
) -> float:
    """Of drafting a chain of ``steps`` and learning from it, the target's pass apart; 0 where no
    model drafts."""
    prompt = torch.tensor(cache.tokens)
    chain = create_tree(TreeConfig("chain", steps, steps, 1), SamplingConfig())
    fixed = replace(parts, policy=chain, lookup=None, size=steps, costs=None, resized=None)
    draft = Draft(fixed, prompt, prefill, PROMPT_TOKENS + (STEPS + 1) * (turns + 1), cache)
    clock = PhaseClock(target.device)
    last, token = torch.tensor([PROMPT_TOKENS - 1]), prompt[:1]
    fastest = math.inf
    for turn in range(turns):
        begun = time.perf_counter()
        grown = draft.grow(Committed(prefill, last, token), clock)
        tree = grown.landed() if isinstance(grown, UnreadTree) else grown
        spent = time.perf_counter() - begun
        if not draft.depth:
            return 0.0
        output = target.verify(cache.state, tree)
        path, bonus = verify_greedy(tree, output)  # the shortlist learns from what it has read
        settled = torch.cat([tree.tokens[path[1:]], torch.tensor([bonus])])
        begun = time.perf_counter()
        draft.observe(tree, output, path, settled)
        spent += time.perf_counter() - begun
        if turn:
            fastest = min(fastest, 1e3 * spent)
    return fastest


def _read_ms(target: Target, parts: Speculation, text: Committed) -> float:
    """Of a settled token that the drafter reads with many others."""
    fastest, tokens = math.inf, text.tokens
    for _ in range(READINGS):
        state = parts.drafter.begin(tokens, tokens.numel() + 1)
        read = partial(parts.drafter.extend, state, text)
        fastest = min(fastest, _timed(target, read))
    return fastest / tokens.numel()


def _timed(target: Target, call: Callable[[], object]) -> float:
    """Milliseconds of a call, the device's work included."""
    begun = time.perf_counter()
    call()
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    return 1e3 * (time.perf_counter() - begun)
