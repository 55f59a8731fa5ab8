"""The table of costs: what is kept, and when it is dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.engine import measure
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import StepStats
from dynaspec_cli.tuning.costs import ROWS, CostTable


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def engine(tiny_model_dir: Path, tiny_drafter_dir: Path, cache_dir: Path) -> Engine:
    return Engine.load(str(tiny_model_dir), "float32", "cpu", drafter=str(tiny_drafter_dir))


def timed(engine: Engine, times: Callable[[int], float]) -> tuple[CostTable, int]:
    """The table where the n-th timed call takes ``times(n)`` ms, and how many there were."""
    calls = 0

    def clock(target: Any, call: Callable[[], None]) -> float:
        nonlocal calls
        calls += 1
        return times(calls - 2)  # the first says how slow the machine is

    parts = engine.speculation(GenerationConfig())
    original, measure._timed = measure._timed, clock
    try:
        return measure.measure(engine.target, parts), calls - 1 - measure.READINGS
    finally:
        measure._timed = original


def test_turns_go_on_while_they_find_faster_passes(engine: Engine, cache_dir: Path) -> None:
    sizes = len(ROWS)
    table, calls = timed(engine, lambda n: 2.0)
    assert calls == sizes * measure.FEWEST_TURNS
    assert table.pass_ms == (2.0,) * sizes
    # Each turn is faster than the last: it never settles.
    table, calls = timed(engine, lambda n: 100.0 * 0.9 ** (n // sizes))
    assert calls == sizes * measure.MOST_TURNS
    # Noise on all but the second turn.
    table, calls = timed(engine, lambda n: 1.0 if n // sizes == 1 else 5.0)
    assert calls == sizes * 4
    assert table.pass_ms == (1.0,) * sizes


def test_what_a_round_costs_apart_from_its_steps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only drafting (2 ms a pass) and learning from a round (5 ms) move."""
    parts, now = engine.speculation(GenerationConfig()), [0.0]

    def moving(part: Any, name: str, ms: float) -> None:
        call = getattr(part, name)

        def moved(*args: Any) -> Any:
            now[0] += ms / 1e3
            return call(*args)

        monkeypatch.setattr(part, name, moved)

    moving(parts.drafter, "extend", 2.0)
    moving(parts.drafter, "step", 2.0)
    moving(parts.shortlist, "observe", 5.0)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(measure, "_timed", lambda target, call: 1.0)
    table = measure.measure(engine.target, parts)
    assert (table.base_ms, table.draft_ms) == pytest.approx((5.0, 2.0))


def step(ms: float) -> StepStats:
    return StepStats(2, 1, 1, (), (), {"verify": ms / 1e3, "head": 0.001})


@pytest.mark.parametrize(
    ("passes", "dropped"),
    [
        ([8.4] * 16, True),
        ([8.4] * 15, False),  # too few to say
        ([8.6] * 16, False),  # within the noise
        ([8.0] * 4 + [20.0] * 12, False),  # a few are luck
        ([8.0] * 5 + [20.0] * 11, True),
    ],
)
def test_a_table_taken_under_load_is_dropped(
    engine: Engine, cache_dir: Path, passes: list[float], dropped: bool
) -> None:
    parts = engine.speculation(GenerationConfig())
    (kept,) = (cache_dir / "costs").iterdir()
    table = CostTable((1, 3), (10.0, 12.0), 1.0)
    assert measure.reconsider(engine.target, parts, table, [step(ms) for ms in passes]) == dropped
    assert kept.exists() != dropped
    assert measure.reconsider(engine.target, parts, table, [step(8.0)] * 16)  # gone already: fine
    assert not kept.exists()


def test_requests_of_a_process_keep_their_table(engine: Engine, cache_dir: Path) -> None:
    config = GenerationConfig(max_new_tokens=40)
    engine.speculation(config)
    (slow,) = engine._tables
    table = CostTable((1, 17), (1e6, 2e6), 1e3)
    engine._tables[slow] = table
    engine.complete("one two three", config)
    assert list((cache_dir / "costs").iterdir()) == []
    assert engine._tables[slow] is table
