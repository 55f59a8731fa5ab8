"""The script for the first minutes on a GPU, shortened, on the pretended one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import DEVICE, pretend_cuda
from pretend_ops import device_ops
from static_step import captured_steps

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_first_minutes as script
import gpu_stages
from gpu_random_model import TINY

SHORT = gpu_stages.Setting(
    DEVICE,
    TINY,
    steps=3,
    contexts=(20, 60),
    shortlist=64,
    nodes=12,
    depth=3,
)


@pytest.mark.parametrize("name", [name for name in gpu_stages.STAGES if name != "transformers"])
def test_a_stage_runs_and_its_facts_are_json(name: str) -> None:
    torch.manual_seed(0)
    with pretend_cuda() as guard, device_ops(), captured_steps(guard):
        found = gpu_stages.STAGES[name](SHORT)
    assert json.loads(json.dumps(found)) == found
    if name == "passes":
        assert found["captured_as_eager"] is True
        assert found["verify_60_ms"] > 0
    if name == "whole":  # a drafter that passes the feature on is always right
        assert found["plain_tokens_per_step"] == 1
        assert found["drafts_tokens_per_step"] == SHORT.depth + 1


def test_the_stage_of_transformers_runs_on_a_cpu() -> None:
    torch.manual_seed(0)
    setting = gpu_stages.Setting(
        torch.device("cpu"), TINY, torch.float32, steps=2, shortlist=64, nodes=6, depth=2
    )
    found = gpu_stages.STAGES["transformers"](setting)
    assert found["plain_tokens_per_step"] == 1


def test_limits_fit_the_minutes() -> None:
    assert sum(stage.limit_s for stage in script.STAGES) <= script.TOTAL_S
    first = [stage.limit_s for stage in script.STAGES if stage.first]
    assert sum(first) < script.FIRST_HALF_S
    assert [stage.first for stage in script.STAGES] == sorted(
        (stage.first for stage in script.STAGES), reverse=True
    )
    functions = {stage.name for stage in script.STAGES if stage.command is None}
    assert functions == set(gpu_stages.STAGES)


def test_a_stage_that_hangs_or_fails_stops_no_other(tmp_path: Path, capsys: Any) -> None:
    python = sys.executable
    stages = (
        script.Stage("hangs", 1, (python, "-c", "import time; time.sleep(60)")),
        script.Stage("fails", 20, (python, "-c", "raise SystemExit('broken')")),
        script.Stage("missing", 20, ("no-such-program",)),
        script.Stage("works", 20, (python, "-c", "print('fine')")),
    )
    assert script.run(stages, tmp_path / "out.json") is False
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(stages)
    assert "stopped after 1 s" in lines[0]
    assert "broken" in lines[1]
    assert "no-such-program is not installed" in lines[2]
    assert "fine" in lines[3]
    written = json.loads((tmp_path / "out.json").read_text())["stages"]
    assert [stage["ok"] for stage in written] == [False, False, False, True]


def test_no_time_is_spent_beyond_the_total(capsys: Any) -> None:
    stages = (script.Stage("a", 20, (sys.executable, "-c", "print(1)")),)
    assert script.run(stages, None, total_s=0.5) is False
    assert "no time was left" in capsys.readouterr().out
