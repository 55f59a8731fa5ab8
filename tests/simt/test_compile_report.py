"""The reading of nvcc's resource report (tools/cuda_check/compile.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4goodv' for 'sm_80'
ptxas info    : Function properties for _Z4goodv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 1024 bytes smem, 448 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3badv' for 'sm_100a'
ptxas info    : Function properties for _Z3badv
    8 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 8 bytes cumulative stack size
ptxas info    : Compiling entry function '_Z4lostv' for 'sm_90'
"""


@pytest.fixture(scope="module")
def report() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools" / "cuda_check" / "compile.py"
    spec = importlib.util.spec_from_file_location("cuda_check_compile", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_spills_and_missing_reports_are_faults(report: ModuleType) -> None:
    good, bad, lost = report.parse_report("x.cu", REPORT)
    assert (good.target, good.registers, good.static_shared_bytes) == (80, 56, 1024)
    assert good.fault() == ""
    assert (bad.target, bad.spill_bytes, bad.stack_bytes) == (100, 12, 8)
    assert "spills 12 bytes" in bad.fault()
    assert "incomplete" in lost.fault()


def test_too_much_static_shared_memory_is_a_fault(report: ModuleType) -> None:
    entry = report.Resources("x.cu", "k", 90, 32, 0, 0, 50 * 1024)
    assert "static shared memory" in entry.fault()
