"""Schemas, fake kernels and ``torch.compile``; the loader and its fallback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from head_cases import DTYPES, EMPTY, make_case

import dynaspec_cli
from dynaspec_cli import ops
from dynaspec_cli.ops import extension
from dynaspec_cli.ops.extension import EXTENSION, torch_mismatch

built = pytest.mark.skipif(EXTENSION.module is None, reason=EXTENSION.reason)


@built
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_opcheck(dtype: torch.dtype) -> None:
    check = torch.library.opcheck
    op = torch.ops.dynaspec
    case = make_case(1, 3, 32, 200, dtype)
    scale = case.scale if case.scale.numel() else None
    blocks, _ = ops.shortlist_union(*case.union)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    check(op.linear, (case.hidden, case.head, torch.ones(200), scale), test_utils=tests)
    check(op.shortlist_topk, (*case.dense, blocks, 4, 0.7), test_utils=tests)
    check(op.shortlist_log_probs, (*case.dense, blocks, 0.7), test_utils=tests)
    check(op.shortlist_union, case.union, test_utils=tests)
    check(op.draft_head, (*case.dense, *case.union, 4, 0.7), test_utils=tests)


@built
def test_opcheck_router() -> None:
    f, e, w1, w2 = torch.randn(2, 4), torch.randn(2, 3), torch.randn(5, 7), torch.randn(6, 5)
    torch.library.opcheck(
        torch.ops.dynaspec.router_clusters, (f, e, w1, torch.ones(5), w2, torch.ones(6))
    )
    torch.library.opcheck(
        torch.ops.dynaspec.router_clusters, (f, EMPTY, EMPTY, EMPTY, torch.randn(6, 4), EMPTY)
    )


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(dynaspec_cli.__file__).resolve().parent.parent)
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    env.pop("DYNASPEC_CPU_ISA", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_fallback_warns_once_and_computes() -> None:
    code = (
        "import torch; from dynaspec_cli import ops\n"
        "x = torch.ones(2, 3)\n"
        "a = ops.linear(x, x, None, None); b = ops.linear(x, x, None, None)\n"
        "assert torch.equal(a, torch.full((2, 2), 3.0)) and torch.equal(a, b)\n"
        "print(ops.backend(), '|', ops.backend_reason())"
    )
    child = run(code, DYNASPEC_EXTENSION="0")
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("torch | the compiled extension is not in use: ")
    assert "DYNASPEC_EXTENSION=0" in child.stdout
    assert child.stderr.count("PyTorch fallback") == 1


def test_import_of_the_package_brings_no_torch() -> None:
    child = run("import sys, dynaspec_cli; print('torch' in sys.modules)")
    assert child.stdout.strip() == "False", child.stderr


def test_a_build_loads_from_its_oldest_torch_on() -> None:
    build = {"torch_from": [2, 10], "torch": "2.13.0+cpu", "cuda": None}
    for version in ("2.10.0", "2.13.0+cpu", "2.14.1+cu130", "2.15.0a0+git12", "3.0.0"):
        assert torch_mismatch(build, version, "13.0") == ""
    for version in ("2.9.1+cpu", "1.13.0"):
        message = torch_mismatch(build, version, None)
        assert message == f"it needs torch 2.10 or newer and this is torch {version}"


def test_a_cuda_build_loads_where_its_major_release_is() -> None:
    build = {"torch_from": [2, 10], "cuda": "13.0"}
    assert torch_mismatch(build, "2.14.1+cu132", "13.2") == ""
    for cuda in ("12.8", None):
        message = torch_mismatch(build, "2.14.1", cuda)
        assert f"built for CUDA 13.0 and this torch has {cuda}" in message
        assert "pip install --no-build-isolation ." in message


@built
def test_the_ops_use_the_stable_interface_alone() -> None:
    """No symbol of PyTorch's C++ namespaces, whose names change with the release."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    path = extension.ops_library()
    listed = subprocess.run(
        [nm, "-D", "--undefined-only", path], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()]
    assert "torch_library_impl" in names
    spaces = re.compile(r"_Z\w*?(2at|3c10|5torch|8pybind11)|Py[A-Z_]")
    assert [name for name in names if spaces.match(name)] == []


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "it was never built here"),
        ("{ not json", "cannot be read"),
        ("[]", "is malformed"),
        ({"built": False, "reason": "no C++ compiler was found"}, "no C++ compiler was found"),
        ({"built": True, "torch": "1.0.0+cpu"}, "names no torch that it loads into"),
        ({"built": True, "torch_from": [99, 0]}, "it needs torch 99.0 or newer and this is torch"),
    ],
)
def test_build_record_decides(
    record: object, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_build_info.json"
    if record is not None:
        path.write_text(record if isinstance(record, str) else json.dumps(record))
    monkeypatch.setattr(extension, "_RECORD", path)
    monkeypatch.delenv("DYNASPEC_CPU_ISA", raising=False)
    loaded = extension._load()
    assert loaded.module is None
    assert loaded.name == "torch"
    assert reason in loaded.reason


@built
def test_backend_names_the_level() -> None:
    isa = EXTENSION.module.isa()
    assert ops.backend() == f"cpu-{isa}"
    assert f"built with torch {EXTENSION.module.torch_version()}" in ops.backend_reason()
    assert isa in EXTENSION.module.available_isas().split(",")
